"""Schedules of settings: their text, their values, and what is refused."""

import json
import math
import pickle
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatio import Fraction, Positive, Schedulable, stabilizers
from ablatio.errors import UserError
from ablatio.registry.knobs import Knob, knob_from
from ablatio.registry.value_schedules import ValueSchedule, is_value_schedule, schedules_of, settled

# text, values in the 11 steps of a run with 100 tokens a step
VALUES = {
    "linear(0,10)": [*range(11)],
    "linear(4,2,from=0.2,until=0.4)": [4, 4, 4, 3, *[2] * 7],
    "linear(0@0,1@0.2,1@0.8,0@1)": [0, 0.5, *[1] * 7, 0.5, 0],
    "linear(0,10,from=200tokens,until=400tokens)": [0, 0, 0, 5, *[10] * 7],
    "linear(10,60,until=5steps)": [10, 20, 30, 40, 50, *[60] * 6],
    "linear(0,10,by=5)": [0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 10],
    "cosine(0,1)": [(1 - math.cos(math.pi * k / 10)) / 2 for k in range(11)],
    "stages(0.1@0,0@0.9)": [*[0.1] * 9, 0, 0],
    "stages(8@0,16@250tokens,4@5steps)": None,  # two units
    "stages(1@0,2@3steps)": [1, 1, 1, *[2] * 8],
    "stages(true@0,false@0.5)": [*[True] * 5, *[False] * 6],
    "stages([matrix,head]@0,[]@0.5)": [*[("matrix", "head")] * 5, *[()] * 6],
    "steps(1,2,3,4)": [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4],
}


@pytest.mark.parametrize("text", [text for text, values in VALUES.items() if values])
def test_values_by_hand(text: str) -> None:
    schedule = ValueSchedule(text)
    found = [schedule.at(step, 11, 100 * step) for step in range(11)]
    assert found == (VALUES[text] if isinstance(found[0], bool | tuple) else pytest.approx(VALUES[text], abs=1e-12))
    again = pickle.loads(pickle.dumps(schedule))
    assert json.loads(json.dumps(schedule)) == text == again and again.points == schedule.points


def test_values_of_whole_numbers_are_rounded_and_pairs_are_connected_entry_by_entry() -> None:
    assert [ValueSchedule("linear(2,6)", whole=True).at(k, 12) for k in range(12)] == [
        2,
        2,
        3,
        3,
        3,
        4,
        4,
        5,
        5,
        5,
        6,
        6,
    ]
    betas = ValueSchedule("linear([0.9,0.9],[0.9,0.99])")
    assert betas.at(0, 11) == (0.9, 0.9) and betas.at(10, 11) == (0.9, 0.99)
    assert betas.at(5, 11) == pytest.approx((0.9, 0.945))


@given(
    form=st.sampled_from(["linear", "cosine", "steps"]),
    values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=5),
    total=st.integers(1, 50),
    whole=st.booleans(),
    by=st.sampled_from(["", ",by=7"]),
)
def test_values_stay_between_their_neighbors_and_end_at_the_last(
    form: str, values: list[int], total: int, whole: bool, by: str
) -> None:
    schedule = ValueSchedule(f"{form}({','.join(map(str, values))}{by if form != 'steps' else ''})", whole)
    found = [schedule.at(step, total) for step in range(total + 3)]
    assert all(min(values) <= v <= max(values) for v in found)
    if not by or form == "steps":
        assert found[0] == values[0] and (total == 1 or set(found[total - 1 :]) == {values[-1]})
    if sorted(values) == values:
        assert found[: total - 1] == sorted(found[: total - 1])
    assert (schedule.lowest, schedule.peak) == (min(values), max(values))


REFUSED = {
    "linear(64)": "at least two values",
    "linear(1,2,by=0)": "above 0",
    "linear(1,2,until=0)": "must lie after",
    "linear(1,2,warmup=3)": "no argument `warmup`",
    "linear(a,b)": "connects numbers",
    "linear(true,false)": "connects numbers",
    "linear([1,2],3)": "differ in length",
    "linear(1@0,2@1,until=0.5)": "exclude each other",
    "stages(1,2)": "has no place",
    "stages(1@0,2@200)": "write 200steps or 200tokens",
    "stages(1@0.5,2@0.2)": "must rise",
    "stages(1@0,2@-0.5)": "before the run",
    "stages(8@0,16@250tokens,4@5steps)": "expected one unit",
    "stages(1@0,2@soon)": "expected a number",
    "steps(1@0,2@1)": "belong to stages",
}


@pytest.mark.parametrize("text", REFUSED)
def test_invalid_schedules_are_refused(text: str) -> None:
    assert is_value_schedule(text)
    with pytest.raises(ValueError, match=REFUSED[text].replace("(", r"\(")):
        ValueSchedule(text)


def test_only_schedulable_knobs_take_schedules_and_each_value_is_checked() -> None:
    share = knob_from("share", Annotated[float, Fraction, Schedulable()], 0.5, "here")
    rows = knob_from("rows", Annotated[int, Positive, Schedulable(flops=True), "rows"], 4, "here")
    fixed, text = knob_from("eps", float, 0.5, "here"), knob_from("path", str, "x", "here")
    assert (share.schedulable, share.flops, rows.flops, fixed.schedulable) == (True, False, True, False)
    assert Knob.from_json(json.loads(json.dumps(rows.to_json()))) == rows
    assert not share.problem("linear(0,1)") and share.problem("linear(0,1.5)").startswith(
        "linear(0,1.5) has the value 1.5"
    )
    assert "expected int" in rows.problem("linear(1,2.5)") and "expected a value > 0" in rows.problem("steps(2,0)")
    assert "cannot change during training" in fixed.problem("linear(0,1)")
    assert not text.problem("linear(0,1)") and text.cast("linear(0,1)") == "linear(0,1)"  # a text may look like that
    made = rows.cast(" linear(1, 5) ")
    assert made == "linear(1,5)" and made.whole and rows.cast(3) == 3


def test_schedules_of_a_config_are_found_and_settled() -> None:
    schedule = ValueSchedule("linear(4,16)", whole=True)
    config = {
        "attention": {"name": "sliding", "window": schedule},
        "stabilizer": {"clip": {"max_norm": 1.0}},
        "seed": 1,
    }
    assert schedules_of(config) == {"attention.window": schedule}
    assert settled(config) == {**config, "attention": {"name": "sliding", "window": 16}}


def test_a_part_is_built_with_constants_only() -> None:
    """A schedule that nothing would apply must not be mistaken for its largest value."""
    with pytest.raises(UserError, match="is a schedule here"):
        stabilizers.build("clip", {"max_norm": "linear(1,2)"})


@pytest.mark.parametrize("text", [*(text for text, values in VALUES.items() if values), "cosine([0,2],[1,4],by=0.5)"])
@pytest.mark.parametrize("total", [1, 2, 11, 997])
def test_in_steps_a_schedule_has_the_same_values_and_then_its_last(text: str, total: int) -> None:
    """Property: the values do not depend on the length of the run any more."""
    before, after = ValueSchedule(text), ValueSchedule(ValueSchedule(text).in_steps(total))

    def values(schedule: ValueSchedule, planned: int, steps: int) -> list[object]:
        found = [schedule.at(step, planned, 100 * step) for step in range(steps)]
        return [pytest.approx(v, abs=1e-7) if not isinstance(v, bool) and v != () else v for v in found]

    assert [after.at(step, total, 100 * step) for step in range(total)] == values(before, total, total)
    assert [after.at(step, 3 * total, 100 * step) for step in range(total)] == values(before, total, total)
    if not before.unit and total > 1:  # a single step has the first value only
        assert after.at(2 * total, 3 * total) == values(before, total, total)[-1]
    assert ValueSchedule(after.in_steps(5)) == after
