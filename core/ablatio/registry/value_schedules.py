"""Settings as functions of training progress: `linear(64,1024)`, `stages(0.1@0,0@0.9)`.

A value schedule is text in the config.  Its value at a step is a function of the step number and of the tokens trained
on before it, so a resumed run continues with the same values.

    stages(A@P, B@Q, ...)   A from place P on, B from Q on; before the first place its value holds
    steps(A, B, C)          the same with stages of equal length
    linear(A, B)            a line from A to B; linear(A@P, B@Q, ...) connects any number of points
    cosine(A, B)            the same with half a cosine between neighboring points

A place is a fraction of the run (0 is the first step, 1 the last), or a number with a unit: 200steps, 1e6tokens.
linear and cosine also take from= and until=, the places of the first and the last value, and by=: values are rounded to
multiples of it.
"""

import itertools
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

FORMS = ("stages", "steps", "linear", "cosine")
CALL = re.compile(rf"({'|'.join(FORMS)})\(([^()]*)\)")
COLUMN = "setting/"  # before the path of a scheduled setting, in the names of its columns in metrics.csv
EXAMPLE = "linear(64,1024), linear(0,0.1,until=0.5), stages(0.1@0,0@0.9) or steps(64,128,256)"
Unit = Literal["", "steps", "tokens"]
Value = Any  # bool, int, float, str, or a tuple of these
_PLACE = re.compile(r"([0-9.eE+_-]+)\s*(steps|tokens)?")


class Point(NamedTuple):
    """A value and the place at which it holds, or from which on."""

    place: float
    value: Value


class ValueSchedule(str):
    """A setting's value as a function of progress; equal to its text, and written to files as that.

    whole  True if values are rounded to integers

    Raises ValueError if the text is not a value schedule.
    """

    form: str
    points: tuple[Point, ...]
    unit: Unit
    by: float | None
    whole: bool

    def __new__(cls, text: str, whole: bool = False) -> "ValueSchedule":
        """Parse the text of a schedule."""
        made = super().__new__(cls, re.sub(r"\s+", "", text))
        if not (found := CALL.fullmatch(made)):
            raise ValueError(f"{text!r} is not a schedule; expected {EXAMPLE}")
        made.form, made.whole = found[1], whole
        values, named = _arguments(found[2])
        allowed = ("from", "until", "by") if made.form in ("linear", "cosine") else ()
        if unknown := [name for name in named if name not in allowed]:
            raise ValueError(f"{made.form} has no argument `{unknown[0]}`; expected {EXAMPLE}")
        made.by = _number(named["by"], "by") if "by" in named else None
        if made.by is not None and made.by <= 0:
            raise ValueError(f"by={named['by']}: expected a number above 0")
        made.points, made.unit = _points(made.form, values, named)
        if made.form in ("linear", "cosine"):
            made._check_numbers()
        return made

    # Copies and pickles of a str call __new__ with its text alone; `whole` must come along.
    def __getnewargs__(self) -> tuple[str, bool]:  # type: ignore[override]
        return str(self), self.whole

    def _check_numbers(self) -> None:
        widths = {len(v) if isinstance(v, tuple) else 0 for v in self.values}
        numbers = [x for v in self.values for x in (v if isinstance(v, tuple) else (v,))]
        if wrong := [x for x in numbers if isinstance(x, bool | str)]:
            raise ValueError(
                f"{self.form} connects numbers, got {wrong[0]!r}; stages({wrong[0]}@0,...) takes any value"
            )
        if len(widths) > 1:
            raise ValueError(f"{self}: its values differ in length")

    @property
    def values(self) -> tuple[Value, ...]:
        """The values as given; those in between lie between neighbors."""
        return tuple(point.value for point in self.points)

    @property
    def peak(self) -> Value:
        """The largest value: what sizes and memory are planned for.  Of switches, words and lists, the last."""
        return max(self.values) if self._ordered else self.values[-1]

    @property
    def lowest(self) -> Value:
        """The smallest value.  Of switches, words and lists, the first."""
        return min(self.values) if self._ordered else self.values[0]

    @property
    def _ordered(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def at(self, step: int, total: int, tokens: float = 0) -> Value:
        """Value in step number `step` (from 0) of `total`, with `tokens` trained on before it."""
        # The last step is at 1, so that the final value is reached; a run of one step is at 0.
        done = {"": step / max(1, total - 1), "steps": step, "tokens": tokens}[self.unit]
        # The tolerance: a place such as 0.3 of 11 steps is reached in step 3, whatever the division rounds to.
        after = next((i for i, point in enumerate(self.points) if point.place > done + 1e-12), len(self.points))
        before, next_ = self.points[max(0, after - 1)], self.points[min(after, len(self.points) - 1)]
        if self.form in ("stages", "steps") or before is next_:
            return before.value
        share = (done - before.place) / (next_.place - before.place)
        if self.form == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if isinstance(before.value, tuple):
            pairs = zip(before.value, next_.value, strict=True)
            return tuple(self._rounded(a + (b - a) * share, a, b) for a, b in pairs)
        return self._rounded(before.value + (next_.value - before.value) * share, before.value, next_.value)

    def in_steps(self, total: int) -> str:
        """Text of the schedule with its places in steps of a run of `total`: the same values, also in a longer run."""
        if self.unit:
            return str(self)
        form = "stages" if self.form == "steps" else self.form
        last = max(1, total - 1)
        # A step has the value of a place that it reaches, so rounding must not move a place past its step.
        points = [f"{_text(point.value)}@{round(point.place * last, 9):.15g}steps" for point in self.points]
        return f"{form}({','.join([*points, *([f'by={self.by!r}'] if self.by is not None else [])])})"

    def _rounded(self, value: float, a: float, b: float) -> float:
        """`value` between a and b as a multiple of `by`, if that still lies between them, and as an integer."""
        if self.by is not None:
            value = math.floor(value / self.by + 0.5) * self.by
        value = min(max(a, b), max(min(a, b), value))
        # Not `round`, which takes 0.5 to 0 and 1.5 to 2: a line would have steps of unequal length.
        return math.floor(value + 0.5) if self.whole else value


def is_value_schedule(value: Any) -> bool:
    """True if a value of the config is written as a schedule."""
    return isinstance(value, ValueSchedule) or (isinstance(value, str) and bool(CALL.fullmatch(value.strip())))


def settled(config: Any) -> Any:
    """The config with the largest value of each schedule in its place: what a model is built with and planned for."""
    return mapped(config, lambda path, schedule: schedule.peak)


def mapped(config: Any, value_of: Any, path: str = "") -> Any:
    """The config with `value_of(path, schedule)` in place of each schedule; lists stand for tuples, as in JSON."""
    if isinstance(config, ValueSchedule):
        found = value_of(path, config)
        return list(found) if isinstance(found, tuple) else found
    if isinstance(config, Mapping):
        return {k: mapped(v, value_of, f"{path}.{k}" if path else str(k)) for k, v in config.items()}
    return config


def ended(written: Any, total: int, tokens: float, whole: Collection[str] = (), path: str = "") -> Any:
    """A config as written to a file, with the value of each schedule at the end of `total` steps: the trained model.

    tokens  trained on before the last step
    whole   paths of settings that take integers
    """
    if isinstance(written, Mapping):
        return {k: ended(v, total, tokens, whole, f"{path}.{k}" if path else str(k)) for k, v in written.items()}
    if not is_value_schedule(written):
        return written
    last = ValueSchedule(written, path in whole).at(total - 1, total, tokens)
    return list(last) if isinstance(last, tuple) else last


def in_steps(written: Any, total: int) -> Any:
    """A config as written to a file, with the places of each schedule in steps of a run of `total` steps."""
    if isinstance(written, Mapping):
        return {k: in_steps(v, total) for k, v in written.items()}
    return ValueSchedule(written).in_steps(total) if is_value_schedule(written) else written


def schedules_of(config: Mapping[str, Any], path: str = "") -> dict[str, ValueSchedule]:
    """All schedules of a checked config, by the path of their setting: {"attention.window": ...}."""
    found: dict[str, ValueSchedule] = {}
    for key, value in config.items():
        if isinstance(value, ValueSchedule):
            found[f"{path}{key}"] = value
        elif isinstance(value, Mapping):
            found |= schedules_of(value, f"{path}{key}.")
    return found


def mentions_schedule(config: Mapping[str, Any]) -> bool:
    """True if a value of the config, checked or not, is written as a schedule."""
    return any(
        mentions_schedule(v) if isinstance(v, Mapping) else isinstance(v, str) and "(" in v and is_value_schedule(v)
        for v in config.values()
    )


def _arguments(text: str) -> tuple[list[str], dict[str, str]]:
    """Split the arguments of a call at commas outside of brackets: (values, {name: value})."""
    parts = [part for part in re.split(r",(?![^\[]*\])", text) if part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return [part for part in parts if "=" not in part], named


def _points(form: str, values: list[str], named: Mapping[str, str]) -> tuple[tuple[Point, ...], Unit]:
    if len(values) < 2:
        raise ValueError(f"{form} needs at least two values; expected {EXAMPLE}")
    placed = ["@" in value for value in values]
    if form == "steps" or (form != "stages" and not any(placed)):
        if any(placed):
            raise ValueError("steps divides the run into equal stages; places, as in 0.1@0.5, belong to stages")
        places, units = _even(form, len(values), named)
        return tuple(Point(p, _value(v)) for p, v in zip(places, values, strict=True)), _one_unit(units)
    if not all(placed):
        without = values[placed.index(False)]
        raise ValueError(
            f"`{without}` has no place; write {without}@0.5 (a fraction of the run), @200steps, @1e6tokens"
        )
    if given := {"from", "until"} & named.keys():
        raise ValueError(f"`{given.pop()}` and places (`{values[0]}`) exclude each other")
    pairs = [value.rsplit("@", 1) for value in values]
    found = [_place(place) for _, place in pairs]
    unit = _one_unit([where for _, where in found])
    if any(b <= a for (a, _), (b, _) in itertools.pairwise(found)):
        raise ValueError("places must rise: " + ", ".join(place for _, place in pairs))
    return tuple(Point(p, _value(v)) for (p, _), (v, _) in zip(found, pairs, strict=True)), unit


def _even(form: str, count: int, named: Mapping[str, str]) -> tuple[list[float], list[tuple[Unit, float]]]:
    """Places of values that are given without: equal stages, or points at equal distances."""
    if form == "steps":
        return [i / count for i in range(count)], [("", 1.0)]
    first, of_first = _place(named.get("from", "0"))
    last, of_last = _place(named.get("until", "1"))
    if last <= first:
        raise ValueError(f"until={named.get('until', 1)} must lie after from={named.get('from', 0)}")
    return [first + (last - first) * i / (count - 1) for i in range(count)], [of_first, of_last]


def _place(text: str) -> tuple[float, tuple[Unit, float]]:
    found = _PLACE.fullmatch(text)
    place = _number(found[1] if found else text, "a place")
    unit: Any = (found and found[2]) or ""
    if place < 0 or not math.isfinite(place):
        raise ValueError(f"the place {text} lies before the run; expected 0 or more")
    if not unit and place > 1:
        raise ValueError(f"the place {text} is no fraction of the run; write {text}steps or {text}tokens")
    return place, (unit, place)


def _one_unit(units: Any) -> Unit:
    """The unit of all places: 0 is the same in every unit."""
    found = {unit for unit, place in units if place}
    if len(found) > 1:
        shown = " and ".join(sorted(unit or "fractions" for unit in found))
        raise ValueError(f"places in {shown}; expected one unit")
    only: Unit = found.pop() if found else ""
    return only


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what}: expected a number, got {text!r}") from None


def _value(text: str) -> Value:
    if text.startswith("[") and text.endswith("]"):
        return tuple(_value(part) for part in text[1:-1].split(",") if part)
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d[\d_]*", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _text(value: Value) -> str:
    """A value as it is written in a schedule."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
