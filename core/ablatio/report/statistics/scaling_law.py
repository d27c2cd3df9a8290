"""Scaling laws: loss as a function of parameters N and tokens D, and the best use of a budget.

    L(N, D) = E + A / N^alpha + B / D^beta        (Hoffmann et al. 2022, arXiv:2203.15556, approach 3)

If only one of the two varies, only its term is fitted (Kaplan et al. 2020, arXiv:2001.08361).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
DELTA = 1e-3  # threshold of Huber's loss in log nats: larger residuals count linearly
GRID = np.geomspace(0.02, 2.0, 28)  # grid of exponents
STARTS = 4
APART = 1.1  # ratio below which two sizes count as one
NAMES = ("E", "A", "alpha", "B", "beta")


@dataclass(frozen=True, slots=True)
class Law:
    """Coefficients of the law; a term that was not fitted has coefficient 0 and exponent 0."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n: Any, d: Any) -> Any:
        """Predicted loss of N parameters and D tokens."""
        return self.E + self.A * np.power(n, -self.alpha) + self.B * np.power(d, -self.beta)

    def best(self, flops: float, per: float = 6.0) -> tuple[float, float]:
        """Return the (N, D) of least loss among those that cost `flops` = per * N * D."""
        if not (self.A and self.B):
            raise ValueError("what a budget is best spent on takes a law in which parameters and tokens both count")
        share = self.alpha / (self.alpha + self.beta)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = scale * (flops / per) ** (1 - share)
        return n, flops / per / n


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted law.  residuals: log of observed minus log of predicted loss per run; draws: laws of resampled runs."""

    law: Law
    residuals: Sequence[float]
    draws: Sequence[Law]
    reach: tuple[tuple[float, float], tuple[float, float]]  # (min, max) of N and of D

    def interval(self, of: Any) -> tuple[float, float]:
        """95 % interval over the draws of a number computed from a law; nan without draws."""
        found = [float(of(law)) for law in self.draws]
        low, high = np.percentile(found, [2.5, 97.5]) if found else (math.nan, math.nan)
        return float(low), float(high)

    def beyond(self, n: float, d: float) -> float:
        """Factor by which (n, d) exceeds the largest run, in parameters or tokens, whichever is larger."""
        return max(n / self.reach[0][1], d / self.reach[1][1])


def fit(n: Sequence[float], d: Sequence[float], losses: Sequence[float], *, draws: int = 200, seed: int = 0) -> Fit:
    """Fit the law to runs.

    Given both exponents the law is linear in E, A and B: that is solved on a grid of exponents, and Huber's loss on log
    losses is minimized from the best grid points.  `draws` bootstrap resamples of the runs give the intervals.

    Raises:
        ValueError: the runs cannot determine the law.
    """
    x, y, z = (np.asarray(v, dtype=np.float64) for v in (n, d, losses))
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(z).all() and min(x.min(), y.min()) > 0):
        raise ValueError("parameters, tokens and losses are numbers above 0")
    terms = _terms(x, y)
    law = _law(_minimum(terms, z, _starts(terms, z)))
    start = [_vector(law, terms)]
    rng, found = np.random.default_rng(seed), list[Law]()
    while len(found) < draws:
        rows = rng.integers(0, len(z), len(z))
        drawn = {name: column[rows] for name, column in terms.items()}
        if all(_different(column) > 2 for column in drawn.values()):  # otherwise the resample cannot determine the law
            found.append(_law(_minimum(drawn, z[rows], start, near=1e-7)))
    residuals = np.log(z) - np.log(law.loss(x, y))
    return Fit(law, residuals.tolist(), found, ((x.min(), x.max()), (y.min(), y.max())))


def _terms(n: Array, d: Array) -> dict[str, Array]:
    """The terms that vary: `A` (parameters), `B` (tokens)."""
    terms = {name: v for name, v in (("A", n), ("B", d)) if _different(v) > 2}
    needed = 2 * len(terms) + 1
    if not terms or len(n) < max(4, needed):
        raise ValueError(
            f"a law takes {max(4, needed)} runs or more, of three sizes or three numbers of tokens that are "
            f"{APART - 1:.0%} apart; there are {len(n)} runs, {_different(n)} sizes, {_different(d)} numbers of tokens"
        )
    if len(terms) == 2 and abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.999:
        raise ValueError("parameters and tokens grow together in these runs: which of them lowers the loss is not told")
    return terms


def _different(values: Array) -> int:
    """Number of distinct values, counting values closer than APART as one."""
    steps = np.diff(np.log(np.sort(values)))
    return 1 + int((steps > math.log(APART)).sum())


def _starts(terms: dict[str, Array], z: Array) -> list[Array]:
    """The best grid exponents, each with its E, A and B by relative non-negative least squares."""
    from scipy.optimize import nnls

    found = []
    for exponents in product(GRID, repeat=len(terms)):
        columns = [np.ones_like(z), *(v**-e for v, e in zip(terms.values(), exponents, strict=True))]
        scale = [column.max() for column in columns]
        weights, cost = nnls(np.stack([c / s / z for c, s in zip(columns, scale, strict=True)], 1), np.ones_like(z))
        sizes = np.maximum(weights, 1e-9) / scale
        pairs = zip(terms, sizes[1:], exponents, strict=True)
        found.append((cost, {"E": sizes[0]} | {name: (size, e) for name, size, e in pairs}))
    found.sort(key=lambda item: item[0])
    return [_vector(told, terms) for _, told in found[:STARTS]]


def _vector(told: Any, terms: dict[str, Array]) -> Array:
    """log E, then log coefficient and exponent of each term."""
    if isinstance(told, Law):
        told = {"E": told.E, "A": (told.A, told.alpha), "B": (told.B, told.beta)}
    pairs = [x for name in terms for x in (math.log(max(told[name][0], 1e-300)), told[name][1])]
    return np.array([math.log(max(told["E"], 1e-300)), *pairs])


def _minimum(terms: dict[str, Array], z: Array, starts: Sequence[Array], near: float = 1e-14) -> dict[str, Any]:
    """Minimize Huber's loss from each start and return the best.  near: tolerance."""
    from scipy.optimize import least_squares
    from scipy.special import logsumexp

    logs = [np.log(v) for v in terms.values()]
    target = np.log(z)

    def parts(w: Array) -> Array:
        rows = [w[1 + 2 * i] - w[2 + 2 * i] * v for i, v in enumerate(logs)]
        return np.stack([np.full_like(target, w[0]), *rows])

    def residuals(w: Array) -> Array:
        return np.asarray(logsumexp(parts(w), axis=0) - target)

    def slopes(w: Array) -> Array:
        shares = np.exp(parts(w) - logsumexp(parts(w), axis=0))
        pairs = [column for i, v in enumerate(logs) for column in (shares[1 + i], -v * shares[1 + i])]
        return np.stack([shares[0], *pairs], 1)

    tight = {"xtol": near, "ftol": near, "gtol": near}
    tried = [
        least_squares(residuals, w, slopes, loss="huber", f_scale=DELTA, x_scale="jac", max_nfev=400, **tight)
        for w in starts
    ]
    best = min(tried, key=lambda result: float(result.cost)).x
    return {"E": math.exp(best[0])} | {
        name: (math.exp(best[1 + 2 * i]), float(best[2 + 2 * i])) for i, name in enumerate(terms)
    }


def _law(found: dict[str, Any]) -> Law:
    a, b = found.get("A", (0.0, 0.0)), found.get("B", (0.0, 0.0))
    return Law(found["E"], *a, *b)


@dataclass(frozen=True, slots=True)
class Budget:
    """Runs of equal cost: the best number of parameters, at the minimum of a parabola in log N.

    inside: True if the minimum lies among the runs; otherwise it is an extrapolation
    """

    flops: float
    runs: int
    best: float
    loss: float
    inside: bool


def budgets(
    n: Sequence[float], flops: Sequence[float], losses: Sequence[float], close: float = 0.1
) -> Iterator[Budget]:
    """Yield one Budget per group of three or more sizes of equal cost (arXiv:2203.15556, approach 2)."""
    order = np.argsort(flops)
    x, c, z = (np.asarray(v, dtype=np.float64)[order] for v in (n, flops, losses))
    edges = np.flatnonzero(np.diff(np.log(c)) > close) + 1
    for rows in np.split(np.arange(len(c)), edges):
        if _different(x[rows]) < 3:
            continue
        logs = np.log(x[rows])
        curve, slope, level = np.polyfit(logs, z[rows], 2)
        if curve > 0:
            bottom = -slope / (2 * curve)
            inside = bool(logs.min() <= bottom <= logs.max())
            low = level - slope**2 / (4 * curve)
            yield Budget(float(np.exp(np.log(c[rows]).mean())), len(rows), math.exp(bottom), float(low), inside)
