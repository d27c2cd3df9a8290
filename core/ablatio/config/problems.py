"""Problems of single values and names: out of range, of another type, misspelled."""

from collections.abc import Iterable, Iterator
from typing import Any

from ablatio.config.synonyms import VALUES
from ablatio.config.typos import nearest
from ablatio.errors import Problem
from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES


def value_problems(where: str, knob: Knob, value: Any) -> Iterator[Problem]:
    """Problems of one value; the fix is the knob's default."""
    if knob.option_of in REGISTRIES and isinstance(value, str):
        options = knob.named(REGISTRIES[knob.option_of].entries)
        if value not in options:
            yield unknown(where, value, options, prefix=f"{where}=")
            return
    if problem := knob.problem(value):
        if meant := VALUES.get(where, {}).get(str(value), ""):
            problem = f"{problem.partition('; did you mean')[0]}; {meant} means the same"
        meant = meant or next(iter(nearest(str(value), map(str, knob.choices))), "")
        if knob.length == -1 and not isinstance(value, list | tuple) and not knob.problem([value]):
            meant = f"[{value}]"
        yield Problem(where, problem, f"{where}={meant or knob.default_text}")


def unknown(where: str, word: str, known: Iterable[str], prefix: str = "") -> Problem:
    """Problem of a name that does not exist; the fix is the closest one that does."""
    known = sorted(set(known))
    if near := nearest(word, known)[:3]:
        return Problem(where, f"there is no `{word}`; did you mean {' or '.join(near)}?", f"{prefix}{near[0]}")
    return Problem(where, f"there is no `{word}`; there are {', '.join(known) or 'none'}")


def no_option(kind: str, name: str, options: Any) -> Problem:
    """Problem of an option that does not exist in its group."""
    if not name:
        return Problem(kind, f"no name is given; there are {', '.join(options)}")
    return unknown(kind, name, list(options), prefix=f"{kind}=")
