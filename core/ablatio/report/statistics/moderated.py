"""Moderated t-test: the variance of each paired difference is steadied by those of the other pairs of the study.

    v_i = (s_i^2 + w s^2) / (1 + w),   s^2 = mean of the pairs' variances,   w = min(1, (m - 1) / 4)

    t_i = mean_i / sqrt(v_i / n_i)  has  (1 + w)(n_i - 1)  degrees of freedom

The form is that of Smyth (2004, Stat. Appl. Genet. Mol. Biol. 3, art. 3), whose prior degrees of freedom d0 are here
w (n - 1).  Smyth estimates d0 from the variances, taking them as independent.  Pairs that share a baseline are not: his
estimate names a false winner in 8 to 11 % of studies with 3 seeds, and the variance pooled over all arms in 9 to 23 %
if one arm varies three times as much, or if all arms but the baseline are correlated.  A pool that never weighs more
than the pair's own seeds stays at 5 % or below in all of these cells (benchmarks/validity.py).  Skewed noise of unequal
spread breaks it as it breaks the paired t-test (method "skewed" is for that).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from scipy import special

from ablatio.report.statistics.paired_tests import Difference

ENOUGH = 5  # pairs from which the pool has its full weight


def moderate(found: Sequence[Difference]) -> list[Difference]:
    """Replace the p of each paired t-test by that of the moderated one.

    The intervals stay those of the paired t-test: a narrower one would cover the difference of an arm that varies more
    than the others in less than 95 % of studies.  Pairs without a test, and pairs without any spread, are left as they
    are and do not enter the pool; with one pair left this is the paired t-test.
    """
    pool = [d for d in found if d.n > 1 and d.sd > 0]
    if len(pool) < 2:
        return list(found)
    free = sum(d.n - 1 for d in pool)
    variance = sum((d.n - 1) * d.sd**2 for d in pool) / free
    weight = min(1.0, (len(pool) - 1) / (ENOUGH - 1))
    return [_moderated(d, variance, weight) if d.n > 1 and d.sd > 0 else d for d in found]


def _moderated(d: Difference, pooled: float, weight: float) -> Difference:
    variance = (d.sd**2 + weight * pooled) / (1 + weight)
    t = d.mean / math.sqrt(variance / d.n)
    p = float(2 * special.stdtr((1 + weight) * (d.n - 1), -abs(t)))
    return replace(d, p=p, method="moderated t")
