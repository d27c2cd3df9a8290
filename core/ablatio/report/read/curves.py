"""Learning curves from metrics.csv, read even while the file is written, and thinned for a chart."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ablatio.registry.value_schedules import COLUMN

POINTS = 160  # per curve; a chart is about 700 pixels wide and a line 2
POLICY = ("train/reward", "train/kl_k3", "train/entropy")  # measured on a policy's rollouts
COLLAPSED = "train/collapsed"  # 1 if the policy gives one answer to all prompts
READ = (
    "train/loss",
    "train/grad_norm",
    *POLICY,
    COLLAPSED,
    "seconds",
)  # columns drawn or counted by a report, beside val/...
_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
Curve = tuple[list[int], list[float]]  # steps, values
Curves = Mapping[str, Curve]
Band = dict[str, list[float]]


def read_curves(path: Path, *, thin: bool = True, also: Sequence[str] = ()) -> tuple[dict[str, Curve], int]:
    """Return (column -> curve, number of unreadable rows); an unfinished last row is not counted.

    thin: to POINTS, for a chart; False keeps each logged value.  also: columns wanted besides val/...,
    scheduled settings and READ
    """
    try:
        # Whatever a crash has left is read as far as it goes; a broken row costs that row alone.
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        rows = list(csv.reader(text.splitlines()))
    except (OSError, csv.Error):
        return {}, 0
    if not rows or "step" not in rows[0]:
        return {}, 0
    header = rows[0]
    place, width = header.index("step"), len(header)
    whole = [len(row) == width and row[place].isdecimal() for row in rows[1:]]
    columns = list(zip(*(row for row, good in zip(rows[1:], whole, strict=True) if good), strict=True))
    if not columns:
        # The last row may be in the middle of being written.
        return {}, max(0, whole.count(False) - 1)
    steps, found = [int(text) for text in columns[place]], dict[str, Curve]()
    for name, column in zip(header, columns, strict=True):
        if (name.startswith(("val/", COLUMN)) or name in READ or name in also) and any(column):
            curve = _curve(steps, column)
            if curve[0]:
                found[name] = _thinned(*curve) if thin else curve
    return found, whole[:-1].count(False)


def _curve(steps: Sequence[int], column: Sequence[str]) -> Curve:
    """Keep the rows with a finite number in this column."""
    # An empty cell is a step without this measurement, as between two validations.
    kept = [(step, text) for step, text in zip(steps, column, strict=True) if text]
    try:
        values = [float(text) for _, text in kept]
    except ValueError:
        kept = [(step, text) for step, text in kept if _FLOAT.fullmatch(text)]
        values = [float(text) for _, text in kept]
    pairs = [(step, value) for (step, _), value in zip(kept, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _thinned(steps: list[int], values: list[float]) -> Curve:
    """Average neighboring points down to POINTS, so that noise is averaged and not sampled; the last point is kept."""
    if len(steps) <= POINTS:
        return steps, values
    edges = np.linspace(0, len(steps) - 1, POINTS).astype(int)
    counts = np.diff(edges)
    x = np.add.reduceat(np.asarray(steps[:-1], float), edges[:-1]) / counts
    y = np.add.reduceat(np.asarray(values[:-1], float), edges[:-1]) / counts
    return [*x.round().astype(int).tolist(), steps[-1]], [*y.tolist(), values[-1]]


def band(curves: Sequence[Curve]) -> Band:
    """Mean and one sd to each side over seeds, at the steps of the longest curve."""
    steps, _ = max(curves, key=lambda c: (c[0][-1], len(c[0])))
    grid = np.asarray(steps, float)
    rows = np.full((len(curves), len(grid)), np.nan)
    for row, (x, y) in zip(rows, curves, strict=True):
        # A run that ended early is in the mean as far as it came; nothing is extrapolated.
        inside = (grid >= x[0]) & (grid <= x[-1])
        row[inside] = np.interp(grid[inside], x, y)
    count = np.maximum(1, (~np.isnan(rows)).sum(0))
    mean = np.nansum(rows, 0) / count
    spread = np.sqrt(np.nansum((rows - mean) ** 2, 0) / np.maximum(1, count - 1))
    spread[count < 2] = 0.0
    made = {"steps": grid, "mean": mean, "low": mean - spread, "high": mean + spread}
    return {k: [float(f"{v:.6g}") for v in values] for k, values in made.items()}


def minus(a: Curve, b: Curve) -> Curve:
    """Return a - b at the steps that both curves have."""
    other = dict(zip(*b, strict=True))
    common = [(s, v - other[s]) for s, v in zip(*a, strict=True) if s in other]
    return [s for s, _ in common], [v for _, v in common]
