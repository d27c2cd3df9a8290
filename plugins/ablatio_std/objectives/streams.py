"""Objectives on the text as it stands: the next token."""

import itertools
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Fraction, objectives
from ablatio.model.example import Example


@objectives.register("lm", paper="arXiv:1801.10198")
class NextToken:
    """-log p(x_{t+1} | x_1 ... x_t) at each position: rows of T + 1 tokens give T inputs and T targets."""

    gives = "next tokens"

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            segments=None if segments is None else segments[:, :-1],
        )


@objectives.register("fim", paper="arXiv:2207.14255")
class FillInTheMiddle:
    """A share `rate` of the documents is cut into prefix, middle, suffix and told in another order; then as `lm`.

    PSM: <PRE> prefix <SUF> suffix <MID> middle.  SPM (a share `spm` of them): <PRE> <SUF> suffix <MID> prefix middle.
    The cuts are at tokens.  Three tokens more than the text had: the end of a full row is cut off.
    """

    gives = "next tokens"
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
