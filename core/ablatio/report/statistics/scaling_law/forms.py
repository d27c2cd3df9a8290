"""Formulas of scaling laws.  Coefficients that are positive are fitted as logs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, LogForm

GRID = np.geomspace(0.02, 2.0, 28)  # grid of exponents
STARTS = 4
NOTHING = 1e-6  # an irreducible loss below it counts as 0: the fit sends its log to minus infinity
COARSE = 37  # every so many grid points are tried whatever their unconstrained error
TERMS = {"A": ("N", "alpha"), "B": ("D", "beta")}


@dataclass(frozen=True, slots=True)
class Chinchilla(LogForm):
    """L = E + A / N^alpha + B / D^beta (arXiv:2203.15556, approach 3), or with one of the two terms.

    terms: A (parameters), B (tokens); w = log E, then log coefficient and exponent of each term
    """

    terms: tuple[str, ...] = ("A", "B")
    paper = "arXiv:2203.15556"

    @property
    def names(self) -> tuple[str, ...]:
        """E, A, alpha, B, beta."""
        return ("E", *(name for term in self.terms for name in (term, TERMS[term][1])))

    @property
    def formula(self) -> str:
        """The formula as text."""
        return "L = E" + "".join(f" + {term} / {TERMS[term][0]}^{TERMS[term][1]}" for term in self.terms)

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Log of the sum of the terms, each of which is the exponential of a linear function of w."""
        return log_sum(self._logs(w, x))

    def slopes(self, w: Array, x: Columns) -> Array:
        """Share of each term in the loss, times the slope of its log."""
        logs = self._logs(w, x)
        top = np.maximum.reduce(logs)
        sizes = [np.exp(log - top) for log in logs]
        whole = sum(sizes)
        irreducible, *shares = (size / whole for size in sizes)
        columns = [irreducible]
        for term, share in zip(self.terms, shares, strict=True):
            columns += [share, -share * np.log(x[TERMS[term][0]])]
        return np.stack(columns, -1)

    def _logs(self, w: Array, x: Columns) -> list[Array]:
        """Log of each term, E first."""
        logs: list[Array] = [w[..., :1] + np.zeros_like(next(iter(x.values())))]
        for i, term in enumerate(self.terms):
            logs.append(w[..., 1 + 2 * i, None] - w[..., 2 + 2 * i, None] * np.log(x[TERMS[term][0]]))
        return logs

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """The best exponents of a grid, each with E, A and B by relative non-negative least squares."""
        grid = np.array(list(product(GRID, repeat=len(self.terms))))
        powers = [x[TERMS[t][0]] ** -grid[:, i, None] for i, t in enumerate(self.terms)]
        columns = np.stack([np.ones_like(powers[0]), *powers], -1)  # (grid, runs, terms)
        found = []
        for i in _promising(columns, z):
            cost, sizes = relative_nnls(list(columns[i].T), z)
            pairs = [v for size, e in zip(sizes[1:], grid[i], strict=True) for v in (math.log(size), e)]
            found.append((cost, np.array([math.log(sizes[0]), *pairs])))
        found.sort(key=lambda item: item[0])
        return [w for _, w in found[:STARTS]]

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients; the E of a fit that needs none is 0."""
        values = [exponential(v) if i == 0 or i % 2 else float(v) for i, v in enumerate(w)]
        values[0] = values[0] if values[0] > NOTHING else 0.0
        return dict(zip(self.names, values, strict=True))


def _promising(columns: Array, z: Array) -> Sequence[int]:
    """Grid points with the least error of unconstrained least squares, and some with positive coefficients.

    columns: (grid, runs, terms).  All grid points are solved at once, and only the best go through non-negative least
    squares, which is slow.
    """
    scaled = columns / columns.max(1, keepdims=True) / z[:, None]
    # The ridge: with small exponents the columns are nearly the same.
    normal = np.einsum("gnp,gnq->gpq", scaled, scaled) + 1e-14 * np.eye(columns.shape[2])
    weights = np.linalg.solve(normal, scaled.sum(1)[..., None])[..., 0]
    cost = ((np.einsum("gnp,gp->gn", scaled, weights) - 1) ** 2).sum(1)
    order = np.argsort(cost, kind="stable")
    positive = [int(i) for i in order if weights[i].min() > 0]
    return list(dict.fromkeys([*positive[: 3 * STARTS], *map(int, order[: 3 * STARTS]), *range(0, len(order), COARSE)]))


def exponential(x: float) -> float:
    """Return e^x, infinite where it overflows."""
    return math.exp(x) if x < 700 else math.inf


def relative_nnls(columns: Sequence[Array], z: Array) -> tuple[float, Array]:
    """Return (cost, coefficients > 0) of z = sum of coefficients times columns, in relative errors."""
    from scipy.optimize import nnls

    scale = np.array([column.max() for column in columns])
    weights, cost = nnls(np.stack([c / s / z for c, s in zip(columns, scale, strict=True)], 1), np.ones_like(z))
    # The fit goes on with logs, so that a term of weight 0 needs a size to start from.
    return float(cost), np.maximum(weights, 1e-9) / scale


def log_sum(parts: Sequence[Array]) -> Array:
    """Return the logarithm of the sum of the exponentials, without overflow."""
    top = np.maximum.reduce(parts)
    with np.errstate(invalid="ignore"):
        return np.asarray(top + np.log(sum(np.exp(part - top) for part in parts)))
