from typing import Annotated

from ablatio import Fraction, curricula


@curricula.register("short_first", paper="arXiv:1903.09848")
class ShortFirst:
    """Rows of the shortest documents first: the share that is drawn from grows along a line from `start` to 1."""

    def __init__(self, *, start: Annotated[float, Fraction] = 0.2) -> None:
        self.start = start

    def easiest(self, progress: float) -> float:
        """Share of the rows that are drawn from, at a place of training from 0 to 1."""
        return max(0.01, self.start + (1 - self.start) * progress)

    def difficulty(self, text: str) -> float:
        """Length of the text."""
        return float(len(text))
