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
from ablatio.report.statistics.effects import Effect, Factors, Term, effects, half_normal
from ablatio.report.statistics.multiple_testing import Ranks, benjamini_hochberg, dunnett, holm, ranks
from ablatio.report.statistics.noise import Noise, noise, rate_sensitivity
from ablatio.report.statistics.paired_tests import Difference, Method, paired
from ablatio.report.statistics.power import power, seeds_needed, smallest_difference

__all__ = [
    "ALL_PAIRS", "ArmScore", "Better", "Comparison", "Correction", "Difference", "Divergence", "Effect", "Factors",
    "Method", "Noise", "Pair", "Ranks", "Term",
    "benjamini_hochberg", "compare", "compare_with_best", "dunnett", "effects", "half_normal", "holm", "noise",
    "paired", "power", "ranks", "rate_sensitivity", "seeds_needed", "smallest_difference",
]  # fmt: skip
