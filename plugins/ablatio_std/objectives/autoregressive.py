"""Objectives on the text as it stands: the next token."""

import itertools
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Fraction, NonNegative, Range, objectives
from ablatio.model.example import Example


@objectives.register("lm", paper="arXiv:1801.10198")
class NextToken:
    """-log p(x_{t+1} | x_1 ... x_t) at each position: rows of T + 1 tokens give T inputs and T targets."""

    produces = "next tokens"

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            segments=None if segments is None else segments[:, :-1],
        )


@objectives.register("multi_token", paper="arXiv:2404.19737")
class MultiToken(NextToken):
    """-log p(x_{t+1}) - weight sum_i log p(x_{t+i}), i = 2 ... ahead: each position says the next tokens, all at once.

    The layers but the last are shared.  The last one says x_{t+1}, and a sibling of it with weights of its own says
    x_{t+i} through the same norm and head.  Scores and decoding take the next token alone and leave the siblings out;
    at equal parameters a model has ahead - 1 layers less.  Nothing is asked beyond a document's end.
    """

    metrics = ("train/next_token",)

    def __init__(
        self,
        *,
        ahead: Annotated[int, Range(2, 32), "coming tokens that a position says"] = 4,
        weight: Annotated[float, NonNegative, "of each token beyond the next"] = 1.0,
    ) -> None:
        self.ahead, self.weight = ahead, weight

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        example, length = super().__call__(tokens, segments, generator), tokens.shape[1] - 1
        row = F.pad(tokens, (0, self.ahead - 1))
        place = torch.arange(length)[:, None] + torch.arange(2, self.ahead + 1)  # (T, n)
        asked = (place <= length).expand(len(tokens), -1, -1)
        if segments is not None:  # the last input before the target stands in the same document
            documents = F.pad(segments, (0, self.ahead - 1), value=-1)
            asked = asked & (documents[:, place - 1] == segments[:, :-1, None])
        return replace(example, further=row[:, place], further_weights=self.weight * asked.float())


@objectives.register("fim", paper="arXiv:2207.14255")
class FillInTheMiddle:
    """A share `rate` of the documents is cut into prefix, middle, suffix and told in another order; then as `lm`.

    PSM: <PRE> prefix <SUF> suffix <MID> middle.  SPM (a share `spm` of them): <PRE> <SUF> suffix <MID> prefix middle.
    The cuts are at tokens.  Three tokens more than the text had: the end of a full row is cut off.
    """

    produces = "next tokens"
    extra_tokens = 3

    def __init__(
        self,
        vocab_size: int,
        *,
        rate: Annotated[float, Fraction, "of the documents"] = 0.5,
        spm: Annotated[float, Fraction, "of those, with the suffix first"] = 0.5,
    ) -> None:
        self.before, self.after, self.between = vocab_size, vocab_size + 1, vocab_size + 2
        self.rate, self.spm = rate, spm

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        rows, numbers = [], []
        for i, row in enumerate(tokens.tolist()):
            borders = [0, len(row)]
            if segments is not None:
                borders[1:1] = (segments[i].diff().nonzero().flatten() + 1).tolist()
            told: list[int] = []
            places: list[int] = []
            for number, (a, b) in enumerate(itertools.pairwise(borders)):
                piece = self._told(row[a:b], generator)
                told += piece
                places += [number] * len(piece)
            rows.append(told[: len(row)])
            numbers.append(places[: len(row)])
        made = torch.tensor(rows)
        packed = None if segments is None else torch.tensor(numbers)[:, :-1]
        return Example(inputs=made[:, :-1], targets=made[:, 1:], segments=packed)

    def _told(self, document: list[int], generator: torch.Generator) -> list[int]:
        draw, order = torch.rand(2, generator=generator).tolist()
        if draw >= self.rate or len(document) < 3:
            return document
        start, text = document[:1], document[1:]  # the sign that opens a document stays in front
        a, b = sorted((torch.randperm(len(text) + 1, generator=generator)[:2]).tolist())
        prefix, middle, suffix = text[:a], text[a:b], text[b:]
        if order < self.spm:
            return [*start, self.before, self.after, *suffix, self.between, *prefix, *middle]
        return [*start, self.before, *prefix, self.after, *suffix, self.between, *middle]
