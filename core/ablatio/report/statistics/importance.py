"""Importance of settings in a search: the share of the scores' variance that each setting explains by itself.

    share = max(0, 1 - sum_i (r_i - f_-i(x_i))^2 / sum_i (r_i - mean_-i)^2)

r_i is the rank of trial i's score (a diverged trial is the worst), f_-i a fit to all other trials, so that a setting
without influence explains nothing: with a fit to all trials, noise alone would explain some of it.  f is the mean of
the trials with the same value for words, and a local line (Gaussian weights, the best of BANDWIDTHS) for numbers.
Shares estimate first-order sensitivity indices (Sobol 1993): what settings do only together is in none of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablatio.report.statistics.multiple_testing import holm

LEAST = 8  # trials from which shares are estimated
GRID = 5  # numbers with at most this many values are treated as words
BANDWIDTHS = (0.05, 0.1, 0.2, 0.4)  # of the local line, in shares of the trials ordered by the setting
DRAWS = 999  # permutations of the scores
Array = NDArray[np.float64]
Values = Sequence[float] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Importance:
    """Importance of one setting.

    share  of the variance of the scores' ranks that the setting explains by itself, 0 to 1
    p      chance of such a share if the setting had no influence, corrected for all settings (Holm); trials must have
           been drawn without regard to results
    """

    share: float
    p: float


def importance(
    settings: Mapping[str, Values], scores: Sequence[float], *, better: str = "low"
) -> dict[str, Importance]:
    """Return the importance of each setting, the largest first; empty for fewer than LEAST trials.

    settings  name -> value in each trial: numbers, on the scale on which they were drawn, or words
    scores    of the trials; nan or infinite for a trial that diverged or failed
    """
    if len(scores) < LEAST:
        return {}
    ranked = _ranks(np.asarray(scores, dtype=np.float64), better)
    if float(np.ptp(ranked)) == 0:
        return {}
    rng = np.random.default_rng(0)
    draws = np.stack([ranked, *(rng.permutation(ranked) for _ in range(DRAWS))], axis=1)  # (trials, 1 + DRAWS)
    varied = {name: values for name, values in settings.items() if len(set(values)) > 1}
    shares = {name: _shares(values, draws) for name, values in varied.items()}
    raw = [float((x >= x[0] - 1e-12).mean()) for x in shares.values()]
    corrected = holm(raw) if raw else []
    found = {
        n: Importance(max(0.0, float(x[0])), float(p)) for (n, x), p in zip(shares.items(), corrected, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].share))


def _ranks(scores: Array, better: str) -> Array:
    from scipy.stats import rankdata

    cost = scores if better == "low" else -scores
    return np.asarray(rankdata(np.where(np.isfinite(cost), cost, math.inf)), dtype=np.float64)


def _shares(values: Values, draws: Array) -> Array:
    """Share of each column of `draws` (trials, columns) that these values explain, before it is cut off at 0."""
    n = len(draws)
    total = (((draws - draws.mean(0)) * n / (n - 1)) ** 2).sum(0)
    left = np.stack([((draws - smoother @ draws) ** 2).sum(0) for smoother in _smoothers(values)])
    return np.asarray(1 - left.min(0) / total)


def _smoothers(values: Values) -> list[Array]:
    """Matrices (trials, trials) that predict each trial from all others."""
    if isinstance(values[0], str) or len(set(values)) <= GRID:
        return [_by_group(values)]
    return [_local_line(np.asarray(values, dtype=np.float64), width) for width in BANDWIDTHS]


def _by_group(values: Values) -> Array:
    words = np.asarray([str(v) for v in values])
    same = (words[:, None] == words[None, :]).astype(np.float64)
    np.fill_diagonal(same, 0.0)
    others = 1.0 - np.eye(len(words))
    weights = np.where(same.sum(1, keepdims=True) > 0, same, others)  # the only trial of a value: the mean of all
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _local_line(values: Array, width: float) -> Array:
    """Weighted least squares of a line around each trial, without that trial."""
    from scipy.stats import rankdata

    place = rankdata(values) / len(values)
    gap = place[None, :] - place[:, None]  # (at, from)
    weights = np.exp(-0.5 * (gap / width) ** 2) + 1e-9
    np.fill_diagonal(weights, 0.0)
    s0, s1, s2 = (weights.sum(1), (weights * gap).sum(1), (weights * gap**2).sum(1))
    slack = 1e-3 * width**2 * s0  # keeps the line flat where all neighbors lie in one place
    return np.asarray(weights * ((s2 + slack)[:, None] - s1[:, None] * gap) / (s0 * (s2 + slack) - s1**2)[:, None])
