"""Learning curves from metrics.csv: read whatever state the file is in, thinned to what a pixel can show."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

POINTS = 160  # of a curve; a chart is some 700 pixels wide, and a line is 2 of them
Curve = tuple[list[int], list[float]]  # steps, values
Curves = Mapping[str, Curve]
Band = dict[str, list[float]]


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Column -> curve, and how many rows could not be read (the last one does not count: it may be half-written)."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.reader(line.replace("\0", "") for line in file))
    except (OSError, csv.Error):
        return {}, 0
    if not rows or "step" not in rows[0]:
        return {}, 0
    header, found, bad = rows[0], dict[str, Curve](), 0
    place = header.index("step")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(header) or not row[place].isdecimal():
            bad += number < len(rows) - 1
            continue
        step = int(row[place])
        for name, text in zip(header, row, strict=True):
            if text and name != "step" and (value := _value(text)) is not None:
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return {name: _thinned(*curve) for name, curve in found.items()}, bad


def _value(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _thinned(steps: list[int], values: list[float]) -> Curve:
    """Means over neighbours, so that noise is not sampled but averaged; the last point stays as it is."""
    if len(steps) <= POINTS:
        return steps, values
    edges = np.linspace(0, len(steps) - 1, POINTS).astype(int)
    counts = np.diff(edges)
    x = np.add.reduceat(np.asarray(steps[:-1], float), edges[:-1]) / counts
    y = np.add.reduceat(np.asarray(values[:-1], float), edges[:-1]) / counts
    return [*x.round().astype(int).tolist(), steps[-1]], [*y.tolist(), values[-1]]


def band(curves: Sequence[Curve]) -> Band:
    """Mean and one sd to each side over seeds, at the steps of the longest curve; a seed counts as far as it came."""
    steps, _ = max(curves, key=lambda c: (c[0][-1], len(c[0])))
    grid = np.asarray(steps, float)
    rows = np.full((len(curves), len(grid)), np.nan)
    for row, (x, y) in zip(rows, curves, strict=True):
        inside = (grid >= x[0]) & (grid <= x[-1])
        row[inside] = np.interp(grid[inside], x, y)
    count = np.maximum(1, (~np.isnan(rows)).sum(0))
    mean = np.nansum(rows, 0) / count
    spread = np.sqrt(np.nansum((rows - mean) ** 2, 0) / np.maximum(1, count - 1))
    spread[count < 2] = 0.0
    made = {"steps": grid, "mean": mean, "low": mean - spread, "high": mean + spread}
    return {k: [float(f"{v:.6g}") for v in values] for k, values in made.items()}


def minus(a: Curve, b: Curve) -> Curve:
    """a - b at the steps that both have."""
    other = dict(zip(*b, strict=True))
    common = [(s, v - other[s]) for s, v in zip(*a, strict=True) if s in other]
    return [s for s, _ in common], [v for _, v in common]
