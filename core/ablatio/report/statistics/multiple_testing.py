"""Corrections of p values for many comparisons, and rank tests over several tasks."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablatio.report.statistics.robustness import residuals


def holm(p: ArrayLike) -> Any:
    """Holm's step-down adjusted p over the last axis (..., m): p_(i) * (m - i + 1), made non-decreasing.

    Controls the chance of any false claim at alpha under every dependence of the tests.  A nan (no test) stays nan and
    counts as a comparison: dropping it would make the others look more certain than the study was planned to be.
    """
    values = np.asarray(p, dtype=np.float64)
    m = values.shape[-1]
    order = np.argsort(values, axis=-1)  # nan last
    stepped = np.take_along_axis(values, order, -1) * np.arange(m, 0, -1)
    return _back(np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0), order)


def benjamini_hochberg(p: ArrayLike) -> Any:
    """Benjamini-Hochberg adjusted p over the last axis: a cut at 0.05 holds the false discovery rate at 5 %."""
    values = np.asarray(p, dtype=np.float64)
    m = values.shape[-1]
    order = np.argsort(values, axis=-1)
    scaled = np.take_along_axis(values, order, -1) * m / np.arange(1, m + 1)
    least = np.fmin.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    return _back(np.where(np.isnan(scaled), np.nan, np.minimum(least, 1.0)), order)


def _back(ordered: Any, order: Any) -> Any:
    found = np.empty_like(ordered)
    np.put_along_axis(found, order, ordered, -1)
    return found


def dunnett(values: ArrayLike, comparisons: int | None = None) -> Any:
    """Dunnett's two-sided p of each arm against the first: values (seeds, arms), with the seed as a block.

    One pooled spread with (seeds - 1)(arms - 1) degrees of freedom: more powerful than Holm with few seeds if all arms
    vary alike.  A baseline that varies twice as much makes 14 % of null studies of 8 arms claim something, so Holm is
    the default, and `compare` checks the spread.  comparisons: number in the study, if some arms have no value.
    """
    x = np.asarray(values, dtype=np.float64)
    seeds, arms = x.shape
    df = (seeds - 1) * (arms - 1)
    error = np.sqrt(2 * (residuals(x) ** 2).sum() / df / seeds)
    m = max(arms - 1, comparisons or 0)
    return np.array([_beyond(abs(t), m, df) for t in (x[:, 1:].mean(0) - x[:, 0].mean()) / error])


def _beyond(limit: float, m: int, df: int) -> float:
    """P(max |T_i| > limit), T_i = (Z_i - Z_0) / sqrt(2) / S, i = 1..m: integrated over Z_0 and S = chi / sqrt(df)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    share, share_weights = np.polynomial.legendre.leggauss(60)
    spread = np.sqrt(special.chdtri(df, 0.5 - share / 2) / df)[:, None]
    inside = special.ndtr(nodes + np.sqrt(2) * limit * spread) - special.ndtr(nodes - np.sqrt(2) * limit * spread)
    return float(np.clip(1 - share_weights / 2 @ inside**m @ weights / np.sqrt(2 * np.pi), 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Ranks:
    """Mean rank of each arm over tasks (1 is best) and Friedman's p of no difference.

    Two arms whose mean ranks differ by more than `critical` differ at the 5 % level; error: unit of such differences.
    """

    mean: tuple[float, ...]
    p: float
    critical: float
    error: float

    @property
    def pairs(self) -> Any:
        """Nemenyi's p of each pair: (arms, arms)."""
        from scipy import stats

        mean = np.array(self.mean)
        p = stats.studentized_range.sf(np.abs(mean[:, None] - mean) / self.error, len(mean), np.inf)
        np.fill_diagonal(p, 1.0)
        return p


def ranks(scores: ArrayLike, *, better: str = "low") -> Ranks:
    """Rank arms over several tasks: scores (tasks, arms), each task ranked by itself, ties share their mean rank."""
    from scipy import stats

    x = np.asarray(scores, dtype=np.float64)
    tasks, arms = x.shape
    placed = stats.rankdata(x if better == "low" else -x, axis=1)
    mean = placed.mean(0)
    ties = 1 - sum((c**3 - c).sum() for c in (np.unique(row, return_counts=True)[1] for row in placed)) / (
        tasks * arms * (arms**2 - 1)
    )
    squares = 12 * tasks / (arms * (arms + 1)) * ((mean - (arms + 1) / 2) ** 2).sum()
    error = math.sqrt(arms * (arms + 1) / (12 * tasks))  # Nemenyi's q is a studentized range
    critical = float(stats.studentized_range.isf(0.05, arms, np.inf)) * error
    p = float(special.chdtrc(arms - 1, squares / ties)) if ties > 0 else 1.0
    return Ranks(tuple(mean.tolist()), p, critical, error)
