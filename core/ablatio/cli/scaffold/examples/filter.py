from typing import Annotated

from ablatio import Fraction, filters
from ablatio.data.filters import Verdict


@filters.register("varied", paper="Source: this page")
class Varied:
    """Keeps documents in which the share of different words is at least `least`."""

    def __init__(self, *, least: Annotated[float, Fraction] = 0.1) -> None:
        self.least = least

    def measure(self, text: str) -> float:
        """Different words over words; called in worker processes."""
        words = text.split()
        return len(set(words)) / max(1, len(words))

    def judge(self, text: str, measure: float) -> Verdict:
        """Keep the text, or drop it with a reason that is counted."""
        return Verdict(text) if measure >= self.least else Verdict(None, "few different words")
