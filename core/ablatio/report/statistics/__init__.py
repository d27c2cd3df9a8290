"""Statistics of comparisons: pure functions of numbers, without files and without torch."""

from ablatio.report.statistics.comparison import (
    ALL_PAIRS,
    ArmScore,
    Better,
    Comparison,
    Correction,
    Pair,
    compare,
    compare_with_best,
)
from ablatio.report.statistics.divergence import Divergence
from ablatio.report.statistics.effects import Effect, Factors, Term, effects
from ablatio.report.statistics.equivalence import MarginTest, against_margin
from ablatio.report.statistics.moderated import moderate
from ablatio.report.statistics.multiple_testing import Ranks, benjamini_hochberg, dunnett, holm, ranks
from ablatio.report.statistics.noise import Noise, noise, rate_sensitivity
from ablatio.report.statistics.paired_tests import Difference, Method, paired
from ablatio.report.statistics.power import assurance, power, seeds_needed, smallest_difference
from ablatio.report.statistics.screening import Contrast, Screen, half_normal, screen
from ablatio.report.statistics.shrinkage import Shrunk, shrink
from ablatio.report.statistics.target import TargetTest, against_target, stopping_step

__all__ = [
    "ALL_PAIRS", "ArmScore", "Better", "Comparison", "Contrast", "Correction", "Difference", "Divergence", "Effect",
    "Factors", "MarginTest", "Method", "Noise", "Pair", "Ranks", "Screen", "Shrunk", "TargetTest", "Term",
    "against_margin", "against_target", "assurance", "benjamini_hochberg", "compare", "compare_with_best", "dunnett",
    "effects", "half_normal", "holm", "moderate", "noise", "paired", "power", "ranks", "rate_sensitivity", "screen",
    "seeds_needed", "shrink", "smallest_difference", "stopping_step",
]  # fmt: skip
