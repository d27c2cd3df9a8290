"""Softmax over the keys that a pattern picks.

A pattern is a function of positions q (..., T, 1) and k (..., 1, S) and of its own settings; it looks both ways, and
the architecture's mask takes away what comes later.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablatio.model.attention.kernels import AttentionView
from ablatio.model.attention.softmax_attention import SoftmaxAttention
from ablatio.model.context import Context

Pattern = tuple[Callable[..., Tensor], *tuple[int, ...]]


def near(q: Tensor, k: Tensor, window: int) -> Tensor:
    return (q - k).abs() < window


@functools.cache
def hidden_pairs(length: int, pattern: Pattern) -> int:
    """Pairs of `length` tokens that a pattern does not show, looking both ways; counted a block of rows at a time."""
    shows, *settings = pattern
    with torch.device("cpu"):  # also where a model is counted on the meta device, which has no numbers
        place = torch.arange(length)
        rows = (shows(q[:, None], place[None], *settings) for q in place.split(512))
        return length * length - sum(int(row.sum()) for row in rows)


class Patterned(SoftmaxAttention):
    """Keys that a pattern picks; cross-attention sees all, and so does each `full_every`-th layer.

    pattern  the function and its settings; None where every key is seen
    """

    pattern: Pattern | None

    def __init__(self, n_kv_heads: int | None, pattern: Pattern, full_every: int = 0, **wiring: Any) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], **wiring)
        full = full_every > 0 and (wiring["layer"] + 1) % full_every == 0
        self.pattern = None if full else pattern

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        return *ctx.place(self.layer, q, k, v), self.sight(ctx)

    def sight(self, ctx: Context) -> Context | AttentionView:
        """Mask and bias, made once a pass for all layers that share the pattern."""
        if self.pattern is None or ctx.memory is not None:
            return ctx
        shows, *settings = self.pattern

        def make() -> AttentionView:
            window = settings[0] if shows is near else None
            return AttentionView.of(ctx, shows(ctx.q_pos[..., :, None], ctx.k_pos[..., None, :], *settings), window)

        return ctx.shared(("sight", self.pattern), make)

    def hidden_flops(self, ctx: Context) -> int:
        """Two products of d_head for each pair that the pattern leaves out of T x S, in each head."""
        if self.pattern is None or ctx.memory is not None:
            return 0
        heads = self.o_proj.in_features // self.d_head
        return 4 * self.d_head * heads * hidden_pairs(ctx.length, self.pattern)
