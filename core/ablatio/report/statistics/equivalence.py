"""Tests against a margin: better by more than it, not worse by it, equal within it.

For an advantage x of arm a over arm b (n seeds, mean m, standard deviation s) and a margin d:

    superior      H0: x <= d     t = (m - d) / (s / sqrt(n))     one-sided
    not inferior  H0: x <= -d    t = (m + d) / (s / sqrt(n))     one-sided
    equivalent    H0: |x| >= d   both one-sided tests (TOST; Schuirmann 1987, J. Pharmacokinet. Biopharm. 15)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from ablatio.report.statistics.multiple_testing import holm
from ablatio.report.statistics.paired_tests import Difference

Outcome = Literal["superior", "inferior", "equivalent", "not inferior", "open", "no test"]


@dataclass(frozen=True, slots=True)
class MarginTest:
    """A paired difference judged against a margin.

    advantage  mean by which the first arm is better; n: seeds that both arms have
    p          by question (superior, inferior, equivalent, not inferior); each corrected by Holm over the pairs
    outcome    the strongest answer that holds at alpha
    """

    advantage: float
    n: int
    p: dict[str, float]
    outcome: Outcome


def one_sided(mean: float, sd: float, n: int, limit: float) -> float:
    """p of H0: true mean <= limit, against a larger one; nan without a spread to measure it by."""
    if n < 2 or math.isnan(sd):
        return math.nan
    if sd == 0:  # equal in every seed: an identical difference other than 0 has no measurable noise
        return math.nan if mean else float(mean <= limit)
    return float(special.stdtr(n - 1, -(mean - limit) / (sd / math.sqrt(n))))


def against_margin(
    found: Sequence[Difference], margin: float, *, better: str = "low", alpha: float = 0.05, directed: bool = True
) -> list[MarginTest]:
    """Judge paired differences a - b against a margin above 0.

    directed  True if each b is the baseline, so that "a beats b by the margin" is one question at alpha and "b beats a"
              another.  Without a baseline either arm may win: the p of both directions is doubled.

    Of each question at most a share `alpha` of studies gives any false answer.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0; {margin:g} came")
    sign = -1.0 if better == "low" else 1.0
    mean = [sign * d.mean for d in found]
    sides = 1 if directed else 2
    above = [one_sided(m, d.sd, d.n, margin) for m, d in zip(mean, found, strict=True)]
    below = [one_sided(-m, d.sd, d.n, margin) for m, d in zip(mean, found, strict=True)]
    not_worse = [one_sided(m, d.sd, d.n, -margin) for m, d in zip(mean, found, strict=True)]
    not_better = [one_sided(-m, d.sd, d.n, -margin) for m, d in zip(mean, found, strict=True)]
    families = {
        "superior": [_at_most_1(sides * p) for p in above],
        "inferior": [_at_most_1(sides * p) for p in below],
        "equivalent": [max(p, q) for p, q in zip(not_worse, not_better, strict=True)],
        "not inferior": not_worse,
    }
    corrected = {name: [float(p) for p in holm(values)] if values else [] for name, values in families.items()}
    return [
        MarginTest(m, d.n, p := {name: values[i] for name, values in corrected.items()}, _outcome(p, alpha))
        for i, (m, d) in enumerate(zip(mean, found, strict=True))
    ]


def _at_most_1(p: float) -> float:
    return p if math.isnan(p) else min(1.0, p)


def _outcome(p: dict[str, float], alpha: float) -> Outcome:
    if math.isnan(p["superior"]):
        return "no test"
    order: tuple[Outcome, ...] = ("superior", "inferior", "equivalent", "not inferior")
    return next((name for name in order if p[name] <= alpha), "open")
