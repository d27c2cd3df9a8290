"""When is one variant better than another?  Pure functions on numbers: no files, no torch."""

from ablatio.report.statistics.pairs import Difference, paired
from ablatio.report.statistics.planning import power, seeds_needed, smallest_difference

__all__ = ["Difference", "paired", "power", "seeds_needed", "smallest_difference"]
