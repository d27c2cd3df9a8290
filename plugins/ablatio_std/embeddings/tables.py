"""Embeddings of single tokens: the rows themselves, narrow rows with a projection, and the sum of two tables."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Range, embeddings
from ablatio.model.context import Context


@embeddings.register("plain")
class Plain(nn.Module):
    """x, the token's row of the table; nothing is built.  (B, T, D) -> same.

    Source: Bengio et al. 2003, https://www.jmlr.org/papers/v3/bengio03a.html
    """

    splits_tokens = True

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        return x


@embeddings.register("factorized", paper="arXiv:1909.11942")
class Factorized(nn.Module):
    """W x with a token table of width E < D: V E + E D parameters instead of V D (ALBERT).  (B, T, E) -> (B, T, D).

    A tied head is factorized too: hidden states are projected to E before it.
    """

    splits_tokens = True

    def __init__(
        self,
        d_model: int,
        *,
        width: Annotated[int | None, Range(1), "width E of the token table; null: d_model / 2"] = None,
    ) -> None:
        super().__init__()
        self.width = width or max(1, d_model // 2)
        self.project_in = nn.Linear(self.width, d_model, bias=False)

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        projected: Tensor = self.project_in(x)
        return projected


@embeddings.register("second")
class Second(nn.Module):
    """x + w e, e the token's row of a second table, which no head shares; w is learned.  (B, T, D) -> same.

    Source: modded-nanogpt, train_gpt_medium.py (`embed2`), https://github.com/KellerJordan/modded-nanogpt; there the
    two are added to the input of each layer, with weights of its own.
    """

    def __init__(self, d_model: int, vocab_size: int, *, start: Annotated[float, "initial value of w"] = 0.0) -> None:
        super().__init__()
        # Its name makes a run that starts from another vocabulary copy the rows that both have.
        self.embed_tokens = nn.Embedding(vocab_size, d_model)
        self.weight = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        return x + self.weight * self.embed_tokens(tokens)
