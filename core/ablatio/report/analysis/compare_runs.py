"""Two runs side by side: what differs between them, and whether their scores may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.errors import DamagedFile, UserError
from ablatio.report.analysis.budgets import MATCHED
from ablatio.report.read.run import Run, inner, terms_of
from ablatio.report.read.single_runs import flatten
from ablatio.report.read.table import read_table
from ablatio.storage.paths import shell_word

COSTS = (
    "parameters", "non_embedding", "flops_per_token", "tokens", "steps", "seconds", "step_seconds", "memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the comparison; None where a run does not have it."""

    what: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs compared: differing settings and code, then results and costs, equal or not.

    obstacles  reasons why the scores must not be compared
    cautions   reasons why the comparison is weak
    """

    runs: tuple[Run, Run]
    settings: Sequence[Line]
    code: Sequence[Line]
    results: Sequence[Line]
    costs: Sequence[Line]
    obstacles: Sequence[str]
    cautions: Sequence[str]


def one_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises UserError unless the folder holds exactly one, and DamagedFile if it is damaged.
    """
    runs = read_table([folder]).runs
    if len(runs) != 1:
        raise UserError(
            f"{folder} holds {len(runs)} runs, one was expected\n    try: ablatio report {shell_word(folder)}"
        )
    if runs[0].state == "damaged":
        # Its numbers are not believed, so there is nothing to compare.
        raise DamagedFile(f"{folder} is damaged: {runs[0].why}")
    return runs[0]


def side_by_side(a: Run, b: Run) -> RunComparison:
    """Compare two runs: settings, code, results, costs, obstacles and cautions."""
    code = _different(_made_of(a), _made_of(b))
    settings = _different(_settings(a), _settings(b))
    results = [Line(k, a.scores.get(k), b.scores.get(k)) for k in sorted({*a.scores, *b.scores})]
    first, second = {**a.size, **a.cost}, {**b.size, **b.cost}
    costs = [Line(k, first.get(k), second.get(k)) for k in COSTS if k in first or k in second]
    return RunComparison((a, b), settings, code, results, costs, _obstacles(a, b), _cautions(a, b, code))


def _settings(run: Run) -> Mapping[str, str]:
    # Where a run lies and what it is called makes no number.
    return flatten({k: v for k, v in run.config.items() if k not in ("out", "name")})


def _made_of(run: Run) -> Mapping[str, str]:
    """Versions, data and code of a run as name -> hash or version."""
    code = inner(run.manifest, "code")
    parts = inner(code, "parts")
    found = {f"part {k}": inner(parts, k).get("sha256") for k in parts}
    found |= {f"plugin {k}": v for k, v in inner(code, "plugins").items()} | {"code": code.get("core")}
    found |= {f"version of {k}": v for k, v in inner(run.manifest, "versions").items()} | {"data": run.data}
    found |= {f"machine {k}": str(v) for k, v in inner(run.manifest, "machine").items()}
    return {k: str(v) for k, v in found.items() if v}


def _different(a: Mapping[str, str], b: Mapping[str, str]) -> list[Line]:
    return [Line(k, a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)]


def _obstacles(a: Run, b: Run) -> list[str]:
    found = [f"{r.folder} is {r.state}: it has no score at the end of its schedule" for r in (a, b) if not r.done]
    one, other = terms_of(a), terms_of(b)
    if one.text != other.text:
        found.append(f"other text: {one.text[:12] or 'unknown'} and {other.text[:12] or 'unknown'}")
    if one.tokenizer != other.tokenizer:
        found.append(
            f"other tokenizer: {one.tokenizer} and {other.tokenizer}; bits per byte can be compared, nats cannot"
        )
    if a.done and b.done and one.tokens != other.tokens:
        found.append(f"other token budget: {one.tokens:,.0f} and {other.tokens:,.0f}")
    return found


def _cautions(a: Run, b: Run, code: Sequence[Line]) -> list[str]:
    found = []
    if a.seed != b.seed:
        found.append(f"other seeds, {a.seed} and {b.seed}: the difference holds the chance of both")
    found.append("one run of each: no interval, no p; a sweep with seed=1,2,3 has them")
    first, second = a.size.get("parameters"), b.size.get("parameters")
    if first and second and abs(first / second - 1) > MATCHED:
        found.append(f"other sizes: {first:,.0f} and {second:,.0f} parameters")
    if any(line.what == "code" for line in code):
        found.append("other code: the two were made by different versions of ablatio")
    return found
