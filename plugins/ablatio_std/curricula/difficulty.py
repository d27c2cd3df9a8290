"""Curricula of difficulty: easy texts first."""

import re
import zlib
from typing import Annotated, Literal

from ablatio import Range, curricula

_WORD = re.compile(r"\w+")


@curricula.register("stages", paper="arXiv:1903.09848")
class Stages:
    """Stages of difficulty: in stage i of n, rows are drawn from the easiest share of the training text.

    The shares rise from `start` to 1 as the competence of Platanios et al. with its root p,
    (start^p + (1 - start^p) i / (n - 1))^(1/p): p = 1 is a line, p = 2 their square root.  Difficulty is the length of
    the document, its compressed bytes per byte, or the mean length of its words.  Within a share below 1 rows are drawn
    with replacement; the last stage passes through all of the text.
    """

    def __init__(
        self,
        *,
        by: Annotated[Literal["length", "compression", "word_length"], "measure of difficulty"] = "compression",
        stages: Annotated[int, Range(2, 10**6), "number of stages of equal length"] = 4,
        start: Annotated[float, Range(0, 1, open_low=True), "share of the text in the first stage"] = 0.25,
        root: Annotated[float, Range(0, 100, open_low=True), "p"] = 1.0,
    ) -> None:
        self.by, self.stages, self.start, self.root = by, stages, start, root

    def easiest(self, progress: float) -> float:
        # n - 1 in the denominator: the last stage has all of the text.
        done = min(self.stages - 1, int(progress * self.stages)) / (self.stages - 1)
        low = self.start**self.root
        return float((low + (1 - low) * done) ** (1 / self.root)) if done < 1 else 1.0

    def difficulty(self, text: str) -> float:
        raw = text.encode("utf-8", "surrogatepass")
        if self.by == "compression":
            # A text that compresses well repeats itself and is easy to predict. The level is fixed, so that the order
            # is the same everywhere.
            return len(zlib.compress(raw, 6)) / max(1, len(raw))
        words = _WORD.findall(text)
        return float(len(raw)) if self.by == "length" else sum(map(len, words)) / max(1, len(words))
