"""Standard errors of scores over the choice of items, with clusters of items that belong together."""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

GROUPS = 20  # of clusters that the jackknife leaves out in turn


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of values whose clusters were drawn independently (arXiv:2411.00640, equation 4).

    sqrt(sum over clusters of (sum of (value - mean) in the cluster)^2) / n, times sqrt(G / (G - 1)) for G clusters, so
    that with one item per cluster it is the usual standard error.  nan for fewer than two clusters.
    """
    x = np.asarray(values, dtype=np.float64)
    index = _numbers(clusters)
    groups = int(index.max()) + 1 if len(index) else 0
    if groups < 2:
        return math.nan
    sums = np.bincount(index, x - x.mean())
    return float(np.sqrt((sums**2).sum() * groups / (groups - 1)) / len(x))


def jackknife_error(
    statistic: Callable[[Sequence[int]], float], clusters: Sequence[Hashable], groups: int = GROUPS
) -> float:
    """Standard error of any statistic of the items: the delete-a-group jackknife.

    The clusters are dealt to G groups.  sqrt((G - 1) / G * sum over groups of (statistic without the group - mean)^2).

    statistic  function of the indices of the items that are kept

    nan for fewer than two clusters.
    """
    index = _numbers(clusters)
    of = index % groups
    used = np.unique(of)
    if len(used) < 2:
        return math.nan
    left = np.array([statistic(np.flatnonzero(of != group).tolist()) for group in used])
    return float(np.sqrt((len(used) - 1) / len(used) * ((left - left.mean()) ** 2).sum()))


def _numbers(clusters: Sequence[Hashable]) -> np.ndarray:
    """Number the clusters 0, 1, ... in the order of their first items."""
    found: dict[Hashable, int] = {}
    return np.array([found.setdefault(c, len(found)) for c in clusters], dtype=np.int64)
