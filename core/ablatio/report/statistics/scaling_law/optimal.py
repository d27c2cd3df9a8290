"""Best use of a budget: from the law, from runs of equal cost, and from learning curves (arXiv:2203.15556)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablatio.report.statistics.scaling_law.fit import different
from ablatio.report.statistics.scaling_law.fitting import Array

SPAN = 1.15  # largest ratio of costs within one group of runs of equal cost
POINTS = 300  # budgets at which the learning curves are compared


def best_use(law: Mapping[str, float], flops: float, per: float = 6.0) -> tuple[float, float]:
    """Return the (N, D) of least loss among those that cost `flops` = per * N * D; law: Chinchilla's coefficients.

    Raises:
        ValueError: the law lacks one of its two terms.
    """
    if not (law.get("A") and law.get("B")):
        raise ValueError("the best use of a budget needs a law in which both parameters and tokens vary")
    alpha, beta = law["alpha"], law["beta"]
    if not (alpha > 0 and beta > 0):
        raise ValueError("the best use of a budget needs positive exponents: more runs of different size are needed")
    scale = (alpha * law["A"] / (beta * law["B"])) ** (1 / (alpha + beta))
    n = scale * (flops / per) ** (beta / (alpha + beta))
    return n, flops / per / n


@dataclass(frozen=True, slots=True)
class Budget:
    """Runs of equal cost: the best number of parameters, at the minimum of a parabola in log N (approach 2).

    span    largest cost over smallest cost in the group, at most SPAN
    curve   coefficients of the parabola in log N, the highest power first
    inside  True if the minimum lies among the runs; otherwise it is an extrapolation
    """

    flops: float
    runs: int
    span: float
    best: float
    loss: float
    curve: tuple[float, float, float]
    sizes: tuple[float, float]
    inside: bool


def groups(flops: Sequence[float], planned: Sequence[float] = (), span: float = SPAN) -> list[Any]:
    """Return the indices of the runs of each budget; within a group costs differ by less than `span`.

    With `planned` budgets a run belongs to the nearest one, if it is within sqrt(span) of it.  Otherwise clusters are
    joined while all their members are within `span` of one another (complete linkage): a chain of runs, each close to
    the next, is not one budget.
    """
    logs = np.log(np.asarray(flops, dtype=np.float64))
    if planned:
        centers = np.log(np.asarray(planned, dtype=np.float64))
        distance = np.abs(logs[:, None] - centers)
        label = np.where(distance.min(1) <= math.log(span) / 2, distance.argmin(1), -1)
        return [np.flatnonzero(label == i) for i in range(len(centers)) if (label == i).any()]
    if len(logs) < 2:
        return [np.arange(len(logs))]
    from scipy.cluster.hierarchy import fcluster, linkage

    label = fcluster(linkage(logs[:, None], "complete"), math.log(span), "distance")
    return sorted((np.flatnonzero(label == i) for i in np.unique(label)), key=lambda rows: float(logs[rows].mean()))


def budgets(
    n: Sequence[float],
    flops: Sequence[float],
    losses: Sequence[float],
    planned: Sequence[float] = (),
    span: float = SPAN,
) -> Iterator[Budget]:
    """Yield one Budget per group of three or more sizes of equal cost whose losses have a minimum."""
    x, c, z = (np.asarray(v, dtype=np.float64) for v in (n, flops, losses))
    for rows in groups(flops, planned, span):
        if different(x[rows]) < 3:
            continue
        logs = np.log(x[rows])
        curve, slope, level = (float(v) for v in np.polyfit(logs, z[rows], 2))
        # A parabola that opens downwards has no best size.
        if curve > 0:
            bottom = -slope / (2 * curve)
            yield Budget(
                float(np.exp(np.log(c[rows]).mean())), len(rows), float(c[rows].max() / c[rows].min()),
                math.exp(bottom), level - slope**2 / (4 * curve), (curve, slope, level),
                (float(x[rows].min()), float(x[rows].max())), bool(logs.min() <= bottom <= logs.max()),
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Losses of one run while it trains: n parameters, FLOPs used at each point."""

    n: float
    flops: Array
    losses: Array


@dataclass(frozen=True, slots=True)
class Envelope:
    """Lowest loss that any run has at each budget, and the size that reaches it (approach 1).

    exponent   of N_opt = k C^exponent; low, high: 95 % interval from resampled runs; D_opt has 1 - exponent
    sizes      number of different sizes on the envelope
    """

    flops: Array
    n: Array
    losses: Array
    exponent: float
    low: float
    high: float
    sizes: int


def envelope(curves: Sequence[LearningCurve], draws: int = 200, seed: int = 0) -> Envelope | None:
    """Return the envelope of learning curves; None unless three sizes lie on it, the smallest and largest excepted.

    Losses are interpolated linearly in the logs.  A run in the middle of its schedule has a higher loss than one that
    ends there, so curves of several lengths per size are needed for an unbiased exponent.
    """
    kept = [c for c in curves if len(c.flops) > 1 and c.flops[0] > 0]
    if len(kept) < 3:
        return None
    ends = [(c.flops[0], c.flops[-1]) for c in kept]
    grid = np.geomspace(min(a for a, _ in ends), max(b for _, b in ends), POINTS)
    table = np.full((len(kept), POINTS), np.inf)
    for row, curve in zip(table, kept, strict=True):
        inside = (grid >= curve.flops[0]) & (grid <= curve.flops[-1])
        row[inside] = np.interp(np.log(grid[inside]), np.log(curve.flops), np.log(curve.losses))
    n = np.array([c.n for c in kept])
    whole = _lowest(table, n, grid)
    if whole is None:
        return None
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        # A run that is drawn twice changes no minimum.
        rows = np.unique(rng.integers(0, len(kept), len(kept)))
        if (drawn := _lowest(table[rows], n[rows], grid)) is not None:
            found.append(drawn[1])
    # If most resamples have no envelope, those that have one are a selection.
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) > draws / 2 else (math.nan, math.nan)
    places, exponent = whole
    best = table[:, places].argmin(0)
    return Envelope(
        grid[places], n[best], np.exp(table[best, places]), exponent, float(low), float(high), different(n[best])
    )


def _lowest(table: Array, n: Array, grid: Array) -> tuple[Any, float] | None:
    """Budgets at which several sizes are there to choose from, and the slope of log N_opt over log C."""
    there = np.isfinite(table)
    choice = np.array([different(n[column]) > 1 if column.sum() > 1 else False for column in there.T])
    best = n[table.argmin(0)]
    # The smallest and the largest size stand for sizes that were not run: where they win, the best is unknown.
    places = np.flatnonzero(choice & (best > n.min()) & (best < n.max()))
    if len(places) < 3:
        return None
    best = best[places]
    if different(best) < 3:
        return None
    return places, float(np.polyfit(np.log(grid[places]), np.log(best), 1)[0])


def power_of_budget(found: Sequence[Budget]) -> float | None:
    """Exponent of N_opt over C through the minima of approach 2 that lie inside their runs; None for fewer than two."""
    inside = [b for b in found if b.inside]
    if not inside or different(np.array([b.flops for b in inside])) < 2:
        return None
    return float(np.polyfit(np.log([b.flops for b in inside]), np.log([b.best for b in inside]), 1)[0])
