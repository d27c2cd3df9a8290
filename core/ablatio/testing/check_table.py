"""The table that `ablatio check` prints: a row for each part, a column for each group of promises, first reasons."""

import textwrap
from collections.abc import Sequence

from ablatio.testing.outcomes import DISTRIBUTION, Outcome

# suite -> test -> column; a test that is not listed belongs to the column of its suite
COLUMNS = ("signature", "source", "repeats", "knobs", "process", "contract", "model")
MEANING = (
    "signature: readable without importing, defaults allowed, first line of the docstring; source: paper or origin; "
    "repeats: same seed, same behavior; knobs: each has an effect; process: global state is left alone; contract: the "
    "suite of its kind; model: trains, decodes and moves in a small model.  2/9: two of nine checks "
    "failed; -: none applies"
)
COMMON = {
    "signature_is_complete": "signature",
    "defaults_are_legal": "signature",
    "says_what_it_does": "signature",
    "says_where_it_comes_from": "source",
    "same_twice": "repeats",
    "made_from_json": "repeats",
    "knob_is_live": "knobs",
    "leaves_the_process_alone": "process",
    "import_leaves_the_process_alone": "process",
}
SUITES = {"test_in_model": "model", "test_common": "repeats"}
NAME = 26  # columns of a part's name; a longer one is cut in the table
LINES = 3  # of a first reason: 20 broken parts fit 120 lines
FIRST = ("signature", "contract", "process", "repeats", "knobs", "model", "source")  # whose reason is told first


def column(outcome: Outcome) -> str:
    """The column of a test."""
    if outcome.suite == "test_common" and outcome.check in COMMON:
        return COMMON[outcome.check]
    return SUITES.get(outcome.suite, "contract")


def render(outcomes: Sequence[Outcome], width: int = 80, verbose: int = 0) -> list[str]:
    """Lines of the table, then of the reasons; `verbose` 1: all of them, 2: with tracebacks."""
    if not outcomes:
        return ["no parts and no YAML options: nothing to check"]
    parts = {o.part: list[Outcome]() for o in sorted(outcomes, key=lambda o: (o.part == DISTRIBUTION, o.part))}
    for outcome in outcomes:
        parts[outcome.part].append(outcome)
    wide = min(max(len("part"), *map(len, parts)), NAME)
    lines = [f"{'part':<{wide}} " + " ".join(f"{name:<{len(name)}}" for name in COLUMNS)]
    lines += [_row(part, found, wide) for part, found in parts.items()]
    reasons = [line for part, found in parts.items() for line in _reasons(part, found, width, verbose)]
    lines += ["", *textwrap.wrap(MEANING, width), *([""] if reasons else []), *reasons]
    return [line.rstrip() for line in [*lines, "", *_summary(parts)]]


def _row(part: str, outcomes: Sequence[Outcome], wide: int) -> str:
    cells = [f"{_cell([o for o in outcomes if column(o) == name]):<{len(name)}}" for name in COLUMNS]
    head = f"{part:<{wide}}" if len(part) <= wide else f"{part[: wide - 2]}.."
    return f"{head} {' '.join(cells)}"


def _cell(outcomes: Sequence[Outcome]) -> str:
    """`ok`, `warn`, `3/9` if 3 of 9 fail, or `-` if nothing was tested."""
    tried = [o for o in outcomes if o.state != "skipped"]
    failed = sum(o.state == "failed" for o in tried)
    if failed:
        return f"{failed}/{len(tried)}"
    if any(o.state == "warned" for o in tried):
        return "warn"
    return "ok" if tried else "-"


def _reasons(part: str, outcomes: Sequence[Outcome], width: int, verbose: int) -> list[str]:
    by_column = sorted(outcomes, key=lambda o: FIRST.index(column(o)))
    failed, warned = ([o for o in by_column if o.state == state] for state in ("failed", "warned"))
    if not failed and not warned:
        return []
    tried = sum(o.state != "skipped" for o in outcomes)
    title = f"{part}: BROKEN, {len(failed)} of {tried} checks failed" if failed else f"{part}: a warning"
    shown = [*failed, *warned] if verbose else [*failed, *warned][:1]
    return [title, *(line for o in shown for line in _reason(o, width, verbose))]


def _reason(outcome: Outcome, width: int, verbose: int) -> list[str]:
    said = " ".join(outcome.reason.split())
    if said.startswith(f"{outcome.part} of ") and ": " in said:
        said = said.split(": ", 1)[1]
    lines = textwrap.wrap(
        f"{outcome.promise}: {said}",
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        max_lines=None if verbose else LINES,
        placeholder=" ...",
    )
    return lines + ([f"    {line}" for line in outcome.detail.splitlines()] if verbose > 1 else [])


def _summary(parts: dict[str, list[Outcome]]) -> list[str]:
    everything = [o for found in parts.values() for o in found]
    broken = sum(any(o.state == "failed" for o in found) for found in parts.values())
    warned = sum(o.state == "warned" for o in everything)
    failed = sum(o.state == "failed" for o in everything)
    tried = sum(o.state != "skipped" for o in everything)
    keep = f"{len(parts) - broken} of {len(parts)} keep their contract"
    checks = f"{tried} checks, {failed} failed" + (f", {warned} warned" if warned else "")
    return [f"{keep}: {checks}"]
