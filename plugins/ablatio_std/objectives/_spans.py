"""Which spans of a document are hidden."""

import itertools

import torch

Span = tuple[int, int]


def spans_of(length: int, rate: float, mean: float, most: int, generator: torch.Generator) -> list[Span]:
    """About `rate` of the tokens, in spans of `mean` tokens on average, none touching another (T5's noise mask).

    The hidden and the shown tokens are each cut at random into as many pieces; they alternate, a shown one first.
    """
    hidden = min(max(round(length * rate), 1), length - 1)
    count = min(max(round(hidden / mean), 1), hidden, length - hidden, most)
    shown_parts = _cut(length - hidden, count, generator)
    hidden_parts = _cut(hidden, count, generator)
    spans, place = [], 0
    for shown, size in zip(shown_parts, hidden_parts, strict=True):
        spans.append((place + shown, place + shown + size))
        place += shown + size
    return spans


def _cut(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`total` as a sum of `count` positive numbers, each such sum equally likely."""
    inner = (torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1).tolist()
    borders = [0, *inner, total]
    return [b - a for a, b in itertools.pairwise(borders)]


def without(document: list[int], spans: list[Span], marks: list[int]) -> list[int]:
    """The document with one mark in place of each span."""
    pieces, place = [], 0
    for (start, end), mark in zip(spans, marks, strict=True):
        pieces += [*document[place:start], mark]
        place = end
    return pieces + document[place:]
