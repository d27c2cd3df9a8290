"""The registry reads a part from its signature and refuses invalid ones."""

from typing import Annotated, Any, Literal

import pytest

from ablatio.errors import UserError
from ablatio.registry.knobs import Fraction, Knob, Range, SignatureError, read_signature
from ablatio.registry.registry import (
    REGISTRIES,
    ContractError,
    Distribution,
    PartSpec,
    Registry,
    provided_by,
    transaction,
)


@pytest.fixture
def things() -> Any:
    kinds = dict(REGISTRIES)
    yield Registry[Any]("thing", "for tests", wiring=("width",), methods=("go",), facts={"fast": False})
    REGISTRIES.clear()
    REGISTRIES.update(kinds)


def test_a_part_is_described_by_its_signature(things: Registry[Any]) -> None:
    @things.register("good", paper="arXiv:1")
    class Good:
        """First line."""

        fast = True

        def __init__(
            self,
            width: int,
            *,
            rate: Annotated[float, Fraction, "how much"] = 0.5,
            mode: Literal["a", "b"] = "a",
            sizes: list[int] | None = None,
        ) -> None:
            self.made = (width, rate, mode, sizes)

        def go(self) -> None: ...

    entry = things["good"]
    assert entry.wiring == ("width",) and entry.facts == {"fast": True} and entry.summary == "First line."
    assert entry.defaults == {"rate": 0.5, "mode": "a", "sizes": None}
    rate = entry.knob("rate")
    assert rate is not None and rate.help == "how much" and str(rate.range) == "[0, 1]"
    assert things.build("good", {"rate": 1, "sizes": [1, 2]}, width=3, other=4).made == (3, 1.0, "a", (1, 2))
    assert PartSpec.from_json(entry.to_json()) == entry
    for knobs, message in (
        ({"rate": 2}, "in \\[0, 1\\]"),
        ({"moed": "a"}, "did you mean mode"),
        ({"mode": "c"}, "a, b"),
    ):
        with pytest.raises(UserError, match=message):
            things.build("good", knobs, width=3)
    with pytest.raises(UserError, match="did you mean good"):
        things.build("godo", {}, width=3)


def test_a_function_states_its_facts_when_it_registers(things: Registry[Any]) -> None:
    @things.register("quick", fast=True)
    def quick(width: int) -> int:
        return width

    assert things["quick"].facts == {"fast": True} and things.build("quick", width=3) == 3
    with pytest.raises(ContractError, match=r"`slow` is not a fact of the kind thing; it has fast"):
        things.register("wrong", slow=True)(quick)


def bad_untyped(self: Any, *, rate=0.5) -> None: ...  # type: ignore[no-untyped-def]
def bad_no_default(self: Any, *, rate: float) -> None: ...
def bad_type(self: Any, *, rate: object = 1) -> None: ...
def bad_default(self: Any, *, rate: Annotated[float, Range(0, 1)] = 3.0) -> None: ...
def bad_variadic(self: Any, **knobs: float) -> None: ...
def bad_wiring(self: Any, depth: int, *, rate: float = 1.0) -> None: ...
def bad_name(self: Any, *, name: str = "x") -> None: ...


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (bad_untyped, "`rate` has no type"),
        (bad_no_default, "`rate` has no default"),
        (bad_type, "supported types are"),
        (bad_default, "does not match its type"),
        (bad_variadic, "hides the knobs"),
        (bad_wiring, "has the parameter `depth`"),
        (bad_name, "is reserved: the framework itself passes name, width"),
    ],
)
def test_an_incomplete_signature_is_refused(things: Registry[Any], init: Any, message: str) -> None:
    part = type("Part", (), {"__init__": init, "go": lambda self: None})
    with pytest.raises((ContractError, SignatureError), match=message):
        things.register("part")(part)
    assert "part" not in things.entries


def test_names_are_valid_and_unique(things: Registry[Any]) -> None:
    part = type("Part", (), {"go": lambda self: None})
    for name in ("a.b", "A", "", "a b", "é", "x" * 65, "a\n", "_a"):
        with pytest.raises(ContractError, match="not a valid name"):
            things.register(name)(part)
    with provided_by(Distribution("first", "1")):
        things.register("part")(part)
    with (
        provided_by(Distribution("second", "2")),
        pytest.raises(ContractError, match=r"provided by first 1 .* second 2"),
    ):
        things.register("part")(type("Other", (), {"go": lambda self: None}))
    with pytest.raises(ContractError, match="needs the method `go`"):
        things.register("empty")(type("Empty", (), {}))


def test_a_failed_transaction_leaves_no_trace(things: Registry[Any]) -> None:
    with pytest.raises(RuntimeError), transaction():
        things.register("half")(type("Half", (), {"go": lambda self: None}))
        Registry[Any]("other_thing", "for tests")
        raise RuntimeError
    assert "half" not in things.entries and "other_thing" not in REGISTRIES


def test_a_function_part_has_a_signature_of_its_kind() -> None:
    def wrong(y: float, *, a: float = 1.0) -> float:
        return y

    with pytest.raises(ContractError, match=r"wrong\(y\) was found, a schedule function wrong\(step, total\) or"):
        REGISTRIES["schedule"].register("wrong")(wrong)


@pytest.mark.parametrize(
    ("annotation", "default", "good", "bad"),
    [
        (int, 1, [0, -3], [1.5, True, "1", None]),
        (float, 1.0, [2, 0.5], ["abc", True, float("nan"), float("inf"), "???", None]),
        (bool, True, [False], [0, 1, "true"]),
        (str, "a", ["b", ""], [1]),
        (int | None, None, [1, None], ["x"]),
        (tuple[float, float], (0.9, 0.95), [[0.1, 0.2]], [[0.1], 0.1, [0.1, "x"]]),
        (list[int] | None, None, [[1, 2, 3], None], [[1.5]]),
        (Literal["a", "b"], "a", ["b"], ["c", None, 1]),
        (Literal[1, 2], 1, [2], [3, True]),
    ],
)
def test_values_are_checked_by_type(annotation: Any, default: Any, good: list[Any], bad: list[Any]) -> None:
    def part(*, knob=default) -> None: ...  # type: ignore[no-untyped-def]

    part.__annotations__["knob"] = annotation
    knob = read_signature(part, "here")[1][0]
    assert Knob.from_json(knob.to_json()) == knob
    assert [knob.problem(v) for v in good] == [""] * len(good)
    assert all(knob.problem(v) for v in bad)
