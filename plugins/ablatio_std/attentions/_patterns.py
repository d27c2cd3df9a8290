"""Softmax attention over the keys that a pattern shows.

A pattern is a function of the positions q (..., T, 1) and k (..., 1, S) and of its settings; it returns True where
query t sees key s: (..., T, S).  It may show later keys, which the architecture's mask hides.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablatio.model.attention.kernels import AttentionView
from ablatio.model.attention.softmax_attention import BY_HEADS, SoftmaxAttention
from ablatio.model.context import Context

Pattern = tuple[Callable[..., Tensor], *tuple[int, ...]]


def near(q: Tensor, k: Tensor, window: int) -> Tensor:
    """True for keys less than `window` tokens away."""
    return (q - k).abs() < window


def near_pairs(length: int, window: int) -> int:
    """Number of pairs of `length` tokens that `near` shows: L + 2 sum over 0 < d < window of (L - d)."""
    reach = min(window, length)
    return length + 2 * (reach - 1) * length - reach * (reach - 1)


@functools.cache
def hidden_pairs(length: int, pattern: Pattern) -> int:
    """Number of (query, key) pairs of `length` tokens that the pattern hides, before the mask.

    Blocks of 512 queries are counted at a time, which bounds the memory; those of a window have a formula.
    """
    shows, *settings = pattern
    if shows is near:
        return length * length - near_pairs(length, *settings)
    with torch.device("cpu"):  # FLOPs may be counted under the meta device, whose tensors have no values
        pos = torch.arange(length)
        rows = (shows(q[:, None], pos[None], *settings) for q in pos.split(512))
        return length * length - sum(int(row.sum()) for row in rows)


class Patterned(SoftmaxAttention):
    """Softmax over the keys that a pattern shows; cross-attention and every `full_every`-th layer see all keys.

    pattern  the function and its settings; None if every key is seen
    """

    takes_values, splits_tokens = True, True
    column_parallel, row_parallel, replicated = BY_HEADS
    pattern: Pattern | None

    def __init__(self, n_kv_heads: int | None, pattern: Pattern, full_every: int = 0, **wiring: Any) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], **wiring)
        full = full_every > 0 and (wiring["layer"] + 1) % full_every == 0
        self.pattern = None if full else pattern

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        return *ctx.place(self.layer, q, k, v), self.view(ctx)

    def view(self, ctx: Context) -> Context | AttentionView:
        """Mask and bias of this pattern, made once in a pass for all layers that share the pattern."""
        if self.pattern is None or ctx.memory is not None:
            return ctx
        shows, *settings = self.pattern

        def make() -> AttentionView:
            # A kernel that knows the window skips whole blocks of keys; other patterns are masks only.
            window = settings[0] if shows is near else None
            return AttentionView.of(ctx, shows(ctx.q_pos[..., :, None], ctx.k_pos[..., None, :], *settings), window)

        return ctx.shared(("view", self.pattern), make)

    def hidden_flops(self, ctx: Context) -> int:
        """FLOPs of the hidden pairs of T x S: two products of d_head (4 d_head FLOPs) for each pair and head."""
        if self.pattern is None or ctx.memory is not None:
            return 0
        heads = self.o_proj.in_features // self.d_head
        # Subtracted from the FLOPs of all pairs, which is what the operators count.
        return 4 * self.d_head * heads * hidden_pairs(ctx.length, self.pattern)
