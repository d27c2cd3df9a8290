"""Holm's p by its definition: a hypothesis is rejected if Bonferroni's test rejects each set that holds it."""

from collections.abc import Sequence
from itertools import chain, combinations


def closed_tests(p: Sequence[float]) -> list[float]:
    """Largest Bonferroni p over all sets of hypotheses that hold each one (Marcus, Peritz and Gabriel 1976)."""
    every = range(len(p))
    sets = list(chain.from_iterable(combinations(every, k) for k in range(1, len(p) + 1)))
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in every]
