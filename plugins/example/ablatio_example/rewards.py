"""Diversity of words (Li et al. 2016, arXiv:1510.03055): a reward against repetition."""

from typing import Annotated

from ablatio import Positive, rewards
from ablatio.model.rl.answers import Answer


@rewards.register("distinct", paper="arXiv:1510.03055")
def distinct(answer: Answer, *, n: Annotated[int, Positive, "words of an n-gram"] = 2) -> float:
    """Distinct n-grams / all n-grams of the answer's words: 1 without repetition, 0 for fewer than n words."""
    words = answer.text.lower().split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0
