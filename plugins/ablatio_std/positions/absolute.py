"""Absolute positions: none, or vectors added to the embeddings."""

import math
from typing import Annotated

from torch import Tensor, nn

from ablatio import Range, positions, rule
from ablatio_std.positions._common import sinusoids


@positions.register("none", paper="arXiv:2305.19466")
class NoPosition:
    """No positional signal (NoPE): a causal model can still infer positions from its mask."""


@positions.register("learned", paper="arXiv:1706.03762")
class Learned(nn.Module):
    """x_t + table[t], with one trained vector for each of `model.max_len` positions.  (B, T, D) -> same."""

    extends = False

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_len, d_model)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + self.table(pos)


@positions.register("sinusoidal", paper="arXiv:1706.03762")
class Sinusoidal(nn.Module):
    """sqrt(D) x_t + p_t with p_t[2i] = sin(t / base^(2i/D)), p_t[2i+1] = cos of the same.  (B, T, D) -> same.

    The factor on the embeddings is the paper's (section 3.4): without it p_t dominates them at the start of training.
    """

    def __init__(self, d_model: int, *, base: Annotated[float, Range(1, open_low=True)] = 10000.0) -> None:
        super().__init__()
        self.width, self.base = d_model, base

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return math.sqrt(self.width) * x + sinusoids(pos, self.width, self.base).to(x.dtype)


rule(
    when="position.name == 'sinusoidal' and model.d_model % 2 == 1",
    why="sinusoidal uses a sine and a cosine for each frequency, so model.d_model={model.d_model} must be even",
    fix="model.d_model={model.d_model + 1}",
)
