"""Random spans of a document to hide."""

import itertools

import torch

Span = tuple[int, int]


def spans_of(length: int, rate: float, mean: float, most: int, generator: torch.Generator) -> list[Span]:
    """Draw spans [start, end) with about `rate` of the tokens, `mean` tokens long on average (T5's noise mask).

    Hidden and visible tokens are each split at random into the same number of pieces, at most `most`; the pieces
    alternate, a visible one first, so that no two spans touch.
    """
    # At least one token is hidden and one shown: without either there is nothing to predict, or to predict it from.
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
    """Split `total` into `count` positive integers, uniformly over all such sums."""
    # Distinct inner borders: every piece has at least one token.
    inner = (torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1).tolist()
    borders = [0, *inner, total]
    return [b - a for a, b in itertools.pairwise(borders)]


def without(document: list[int], spans: list[Span], marks: list[int]) -> list[int]:
    """The document with each span replaced by its mark."""
    pieces, place = [], 0
    for (start, end), mark in zip(spans, marks, strict=True):
        pieces += [*document[place:start], mark]
        place = end
    return pieces + document[place:]
