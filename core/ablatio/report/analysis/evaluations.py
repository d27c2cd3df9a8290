"""Evaluations of a study's arms: values with errors, and differences to a reference paired by item, over all seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ablatio.errors import AblatioError
from ablatio.model.evaluation.item_errors import clustered_error
from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.findings import Findings
from ablatio.report.analysis.item_comparison import t_interval
from ablatio.report.numbers import p_cell
from ablatio.report.read.run import Run
from ablatio.report.words import Language, heads, say
from ablatio.training.evaluation.items_file import read_items

ANSWERED, SHOWN = 4, 3  # arms, and items of each evaluation, whose generated answers are shown
Values = Mapping[tuple[str, str, str], tuple[str, Mapping[str, float]]]  # (eval, id, digest) -> cluster, values


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One measure of one arm; nan for what is not known.  The difference is paired by item with the reference."""

    measure: str
    arm: str
    value: float
    error: float
    difference: float
    low: float
    high: float
    p: float
    items: int
    reference: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """The row in English, as text."""
        return self.cells_in("en")

    def cells_in(self, language: Language) -> tuple[str, ...]:
        """The row as text."""
        value = _number(self.value) + (f" ± {_number(self.error)}" if math.isfinite(self.error) else "")
        interval = f"[{self.low:+.3g}, {self.high:+.3g}]" if math.isfinite(self.low) else ""
        apart = (
            f"{self.difference:+.3g}"
            if math.isfinite(self.difference)
            else say("cell_reference", language) * self.reference
        )
        return self.measure, self.arm, value, apart, interval, p_cell(self.p), str(self.items)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def evaluation_rows(found: Findings) -> list[EvaluationRow]:
    """Rows of all measures that finished runs of the study have; the main values alone where a metric has several."""
    arms = [row.arm for row in found.rows]
    base = next((arm for arm in arms if arm.baseline), arms[0] if arms else None)
    # eval/NAME/METRIC are the main values; further values of a metric stand one level deeper.
    columns = dict.fromkeys(c for arm in arms for run in _done(arm) for c in run.measured if c.count("/") == 2)
    by_run: dict[object, Values] = {run.folder: _values(run) for arm in arms for run in _done(arm) if run.measured}
    return [
        _row(column, arm, base, by_run)
        for column in columns
        for arm in arms
        if any(column in run.measured for run in _done(arm))
    ]


def answer_rows(found: Findings, language: Language = "en") -> list[tuple[str, ...]]:
    """Generated answers side by side: a head with the names of arms, then items on which their first runs differ.

    The first ANSWERED arms with answers are shown, with the first SHOWN items of each evaluation.
    """
    arms: dict[str, dict[tuple[str, str, str], Mapping[str, Any]]] = {}
    for row in found.rows:
        run = next((r for r in _done(row.arm) if r.measured), None)
        answers = {key: item for key, item in _rows(run).items() if "answer" in item} if run else {}
        if answers and len(arms) < ANSWERED:
            arms[row.arm.name] = answers
    if len(arms) < 2:
        return []
    first, *others = arms.values()
    rows, shown = list[tuple[str, ...]](), dict[str, int]()
    for key, item in first.items():
        said = [str(of[key]["answer"]) for of in (first, *others) if key in of]
        if len(said) == len(arms) and len(set(said)) > 1 and shown.get(key[0], 0) < SHOWN:
            shown[key[0]] = shown.get(key[0], 0) + 1
            rows.append((f"{key[0]} {key[1]}", str(item.get("prompt", "")), str(item.get("target", "")), *said))
    return [(*heads("answers", language), *arms), *rows] if rows else []


def _done(arm: Arm) -> list[Run]:
    return [run for run in arm.runs if run.done]


def _values(run: Run) -> Values:
    """Values of a run's items; empty if its file is missing or cannot be read."""
    return {key: (row["cluster"], row["values"]) for key, row in _rows(run).items()}


def _rows(run: Run) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    try:
        rows = read_items(run.folder)
    except AblatioError:
        return {}
    return {(row["eval"], row["id"], row["item"]): row for row in rows}


def _row(column: str, arm: Arm, base: Arm | None, by_run: Mapping[object, Values]) -> EvaluationRow:
    measured = [run.measured[column] for run in _done(arm) if column in run.measured]
    value = fmean(m["value"] for m in measured)
    errors = [m["error"] for m in measured if m.get("error") is not None]
    error = fmean(errors) if errors else math.nan
    items = max(int(m.get("items", 0)) for m in measured)
    known = (math.nan,) * 4
    if base is not None and arm is not base:
        known = _paired(column, arm, base, by_run)
    return EvaluationRow(column, arm.name, value, error, *known, items, arm is base)


def _paired(column: str, arm: Arm, base: Arm, by_run: Mapping[object, Values]) -> tuple[float, float, float, float]:
    """Mean difference to the reference by item, its 95 % interval and p."""
    others = {(run.group, run.seed): run for run in _done(base)}
    apart: dict[tuple[str, str, str], list[float]] = {}
    clusters: dict[tuple[str, str, str], object] = {}
    for run in _done(arm):
        other = others.get((run.group, run.seed))
        theirs = by_run.get(other.folder, {}) if other else {}
        for key, (cluster, values) in by_run.get(run.folder, {}).items():
            if key in theirs and column in values and column in theirs[key][1]:
                apart.setdefault(key, []).append(float(values[column]) - float(theirs[key][1][column]))
                # An item without a cluster is independent of all others.
                clusters[key] = cluster or key
    if not apart:
        return (math.nan,) * 4
    # Over seeds first: the runs of one item are not independent answers to different questions.
    means: Sequence[float] = [fmean(values) for values in apart.values()]
    groups = [clusters[key] for key in apart]
    mean, error = fmean(means), clustered_error(means, groups)
    return (mean, *t_interval(mean, error, len(set(groups))))
