"""Valid values of a knob other than its default, derived from its type, choices and range."""

import math
from collections.abc import Iterator
from typing import Any

from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES, PartSpec

INTS = (1, 2, 3, 4, 6, 8, 16)
FLOATS = (0.5, 0.1, 0.01, 0.9, 2.0, 10.0, 100.0)
MOST = 14  # maximum number of values tried for one knob


def other_values(knob: Knob) -> list[Any]:
    """Values that pass the knob's check and differ from the default, simplest first."""
    found: list[Any] = []
    for value in _candidates(knob):
        same = any(value == f and type(value) is type(f) for f in (*found, knob.default))
        if not same and not knob.problem(value):
            found.append(value)
    return found[:MOST]


def _candidates(knob: Knob) -> Iterator[Any]:
    if knob.length is not None:
        yield from _lists(knob)
    else:
        yield from _scalars(knob, knob.default)
    if knob.optional:
        yield None


def _lists(knob: Knob) -> Iterator[Any]:
    items = list(knob.default or ())
    for i, item in enumerate(items):
        for value in _scalars(knob, item):
            yield (*items[:i], value, *items[i + 1 :])
    if knob.length is not None and knob.length < 0:
        yield tuple(items[:-1])
        yield from ((*items, value) for value in _scalars(knob, items[-1] if items else None))


def _scalars(knob: Knob, default: Any) -> Iterator[Any]:
    if knob.choices:
        yield from knob.choices
    elif knob.option_of:
        yield from knob.named(REGISTRIES[knob.option_of].names() if knob.option_of in REGISTRIES else ())
    elif knob.type == "bool":
        yield from (True, False)
    elif knob.type == "str":
        yield from (f"{default or ''}x", "")
    else:
        yield from _numbers(knob, default)


def _numbers(knob: Knob, default: Any) -> Iterator[Any]:
    whole = knob.type == "int"
    if default is not None:
        near = (default * 2, default // 2, default + 1, default - 1) if whole else (default * 2, default / 2)
        yield from near
        if not whole:
            yield from (default * 100, default / 100, default * 1e4, default + 0.1, default - 0.1)
    if knob.range is not None:
        for end in (knob.range.low, knob.range.high):
            if math.isfinite(end):
                yield int(end) if whole else float(end)
    yield from INTS if whole else FLOATS


def settings(entry: PartSpec, knob: Knob) -> Iterator[dict[str, Any]]:
    """Settings of the other knobs under which `knob` may have an effect: the defaults, then one knob changed at a time.

    For example, `nesterov` has an effect only with momentum.
    """
    yield entry.defaults
    for other in entry.knobs:
        words = other.choices or other.also
        if other.name != knob.name and (other.type == "bool" or words or other.optional or not other.default):
            for value in other_values(other)[: None if words else 3]:
                yield entry.defaults | {other.name: value}
