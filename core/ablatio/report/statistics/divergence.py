"""Divergence as an outcome: how often arms diverge, and comparisons in which a diverged run is the worst result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ablatio.report.statistics.multiple_testing import holm
from ablatio.report.statistics.paired_tests import Difference

Values = Mapping[str, Mapping[int, float]]
RANKED = "signed ranks, diverged runs last"  # method of a Difference
EXACT = 16  # pairs up to which all sign patterns are counted


@dataclass(frozen=True, slots=True)
class Divergence:
    """How often an arm diverged, against the baseline or, without one, against all other arms together.

    against  label of the baseline; None: all other arms
    p        Fisher's exact test, two-sided, Holm-corrected over the arms; nan where one side has no run
    """

    arm: str
    diverged: int
    runs: int
    against: str | None
    other_diverged: int
    other_runs: int
    p: float


def divergences(values: Values, baseline: str | None) -> tuple[Divergence, ...]:
    """Test each arm's share of diverged runs.  values: arm -> seed -> score, not finite for a diverged run.

    Fisher's test treats the runs as independent.  Runs that share a seed tend to diverge together, which makes it
    claim less often than its level, not more.
    """
    from scipy import stats

    count = {arm: (sum(not math.isfinite(v) for v in of.values()), len(of)) for arm, of in values.items()}
    whole = [sum(n) for n in zip(*count.values(), strict=True)] if count else [0, 0]
    found = []
    for arm, (k, n) in count.items():
        if arm == baseline:
            continue
        j, m = count[baseline] if baseline is not None else (whole[0] - k, whole[1] - n)
        p = float(stats.fisher_exact([[k, n - k], [j, m - j]]).pvalue) if n and m else math.nan
        found.append(Divergence(arm, k, n, baseline, j, m, p))
    corrected = holm([d.p for d in found]) if found else []
    return tuple(
        Divergence(d.arm, d.diverged, d.runs, d.against, d.other_diverged, d.other_runs, float(p))
        for d, p in zip(found, corrected, strict=True)
    )


def ranked_difference(
    a: Mapping[int, float], b: Mapping[int, float], better: Literal["low", "high"]
) -> tuple[Difference, int]:
    """Compare two arms of which some runs diverged: (difference, sign of the evidence).

    Wilcoxon's signed ranks over the seeds that both ran, with a diverged run worse than any finished one and two
    diverged runs equal.  p counts all sign patterns of the ranks (random ones for more than 16 seeds), so it holds for
    arms that only chance tells apart, whatever makes runs diverge.  The mean is that of the seeds in which both
    finished; it has no interval, for the survivors are a selection.

    An arm without any finished run is not ranked: `divergences` tests it.

    sign: -1 if a has the lower scores, 1 if b has, 0 if neither.
    """
    seeds = sorted(a.keys() & b.keys())
    worst = math.inf if better == "low" else -math.inf
    first, second = (np.array([of[s] if math.isfinite(of[s]) else worst for s in seeds], float) for of in (a, b))
    both = np.isfinite(first) & np.isfinite(second)
    mean = float((first[both] - second[both]).mean()) if both.any() else math.nan
    equal = first == second
    d = np.where(equal, 0.0, np.subtract(first, second, where=~equal, out=np.zeros(len(seeds))))
    if len(seeds) < 2 or not all(any(map(math.isfinite, of.values())) for of in (a, b)):
        return Difference(mean, math.nan, math.nan, math.nan, len(seeds), math.nan, RANKED), 0
    p, total = _signed_ranks(d)
    return Difference(mean, math.nan, math.nan, p, len(seeds), math.nan, RANKED), int(np.sign(total))


def _signed_ranks(d: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return (two-sided p, sum of signed ranks); zeros have no sign, ties share their mean rank."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(d))
    total = float((np.sign(d) * ranks).sum())
    ranks = ranks[d != 0]
    n = len(ranks)
    if n == 0:
        return 1.0, 0.0
    if n <= EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ ranks) >= abs(total) - 1e-9)), total
    signs = np.random.default_rng(0).choice([-1, 1], size=(20_000, n))
    beyond = int((np.abs(signs @ ranks) >= abs(total) - 1e-9).sum())
    return (1 + beyond) / (1 + len(signs)), total
