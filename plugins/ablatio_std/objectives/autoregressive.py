"""Autoregressive objectives: next-token and multi-token prediction, fill-in-the-middle."""

import itertools
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Fraction, NonNegative, Range, Schedulable, objectives
from ablatio.model.example import Example


@objectives.register("lm", paper="arXiv:1801.10198")
class NextToken:
    """Next-token prediction: -log p(x_{t+1} | x_1 ... x_t); rows of T + 1 tokens give T inputs and T targets."""

    produces, splits_tokens = "next tokens", True

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            segments=None if segments is None else segments[:, :-1],
        )


@objectives.register("multi_token", paper="arXiv:2404.19737")
class MultiToken(NextToken):
    """-log p(x_{t+1}) - weight sum_i log p(x_{t+i}), i = 2 ... ahead: each position predicts several next tokens.

    All layers but the last are shared.  The last layer predicts x_{t+1}; for each i a copy of it with its own weights
    predicts x_{t+i} through the same final norm and head.  Scores and decoding use the next token only and leave the
    copies out; at equal parameters a model has ahead - 1 layers fewer.  No target lies beyond a document's end.
    """

    metrics = ("train/next_token",)

    def __init__(
        self,
        *,
        ahead: Annotated[int, Range(2, 32), "number of next tokens predicted at each position"] = 4,
        weight: Annotated[float, NonNegative, Schedulable(), "weight of the loss of each token beyond the next"] = 1.0,
    ) -> None:
        self.ahead, self.weight = ahead, weight

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        example, length = super().__call__(tokens, segments, generator), tokens.shape[1] - 1
        # Padded so that the last positions can be indexed too; `asked` gives what lies beyond the row no weight.
        row = F.pad(tokens, (0, self.ahead - 1))
        place = torch.arange(length)[:, None] + torch.arange(2, self.ahead + 1)  # (T, n)
        asked = (place <= length).expand(len(tokens), -1, -1)  # (B, T, n)
        if segments is not None:  # the token before the target must be in the same document
            documents = F.pad(segments, (0, self.ahead - 1), value=-1)
            asked = asked & (documents[:, place - 1] == segments[:, :-1, None])
        return replace(example, further=row[:, place], further_weights=self.weight * asked.float())


@objectives.register("fim", paper="arXiv:2207.14255")
class FillInTheMiddle:
    """Fill in the middle: a share `rate` of the documents is split into prefix, middle and suffix and reordered.

    PSM: <PRE> prefix <SUF> suffix <MID> middle.  SPM (a share `spm` of them): <PRE> <SUF> suffix <MID> prefix middle.
    The loss is that of `lm`.  Documents are split between tokens.  The three added tokens push the end of a full row
    out of it.
    """

    produces = "next tokens"
    extra_tokens = 3

    def __init__(
        self,
        vocab_size: int,
        *,
        rate: Annotated[float, Fraction, "share of the documents that are reordered"] = 0.5,
        spm: Annotated[float, Fraction, "share of those with the suffix first"] = 0.5,
    ) -> None:
        self.before, self.after, self.between = vocab_size, vocab_size + 1, vocab_size + 2
        self.rate, self.spm = rate, spm

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        rows, numbers = [], []
        for i, row in enumerate(tokens.tolist()):
            borders = [0, len(row)]
            if segments is not None:
                borders[1:1] = (segments[i].diff().nonzero().flatten() + 1).tolist()
            reordered: list[int] = []
            documents: list[int] = []
            for number, (a, b) in enumerate(itertools.pairwise(borders)):
                piece = self._reordered(row[a:b], generator)
                reordered += piece
                documents += [number] * len(piece)
            # Rows keep their length, so that batches do: the marks push the end of the last document out.
            rows.append(reordered[: len(row)])
            numbers.append(documents[: len(row)])
        made = torch.tensor(rows)
        packed = None if segments is None else torch.tensor(numbers)[:, :-1]
        return Example(inputs=made[:, :-1], targets=made[:, 1:], segments=packed)

    def _reordered(self, document: list[int], generator: torch.Generator) -> list[int]:
        draw, order = torch.rand(2, generator=generator).tolist()
        # One draw decides each document, also where it stays as it is: the next one gets the same numbers at any rate.
        if draw >= self.rate or len(document) < 3:
            return document
        start, text = document[:1], document[1:]  # the token that opens a document stays in front
        # Two different cuts: the middle has at least one token, prefix or suffix may be empty.
        a, b = sorted((torch.randperm(len(text) + 1, generator=generator)[:2]).tolist())
        prefix, middle, suffix = text[:a], text[a:b], text[b:]
        if order < self.spm:
            # The prefix stands after <MID>, next to the middle that continues it: the paper's second SPM form, which
            # shares its beginning with PSM.
            return [*start, self.before, self.after, *suffix, self.between, *prefix, *middle]
        return [*start, self.before, *prefix, self.after, *suffix, self.between, *middle]
