"""Small changes to softmax attention that combine freely: gains of the queries, shifted keys, exclusive values."""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range
from ablatio.model.attention.kernels import AttentionView, merge_heads, repeated, split_heads
from ablatio.model.attention.softmax_attention import BY_HEADS, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, cached_state, previous

Exclusive = Annotated[
    Literal["none", "full", "learned"],
    "remove from a head's output its part along the token's own value (XSA, arXiv:2603.09078); learned: tanh(a) of it, "
    "a starts at 0 in each head",
]
KeyOffset = Annotated[
    float,
    Range(0, 1),
    "share of a head's channels, the last ones, in which a key is that of the token before; meant for channels that "
    "the position does not rotate (modded-nanogpt, record of 2025-12-14)",
]
QueryGain = Annotated[
    float | None,
    Range(0, open_low=True),
    "start of a learned gain on each head's queries (parameter-golf: 1.5); null: none",
]
SSMax = Annotated[
    bool, "multiply the queries by s log n, n the keys that a token sees, s learned in each head (arXiv:2501.19399)"
]


class Refined(SoftmaxAttention):
    """Softmax attention with the knobs above; with their defaults, it is that of the class behind it.

    exclusive   y - a (y . v) v / |v|^2, v the query's own value; a = 1, or tanh of a learned number in each head
    key_offset  the last channels of k_t become those of k_{t-1}; a document's first token keeps its own
    query_gain, ssmax  factors on the queries after their norm; s starts at 1 / mean(log n) over n = 1 ... max_len
    """

    takes_values, splits_tokens = True, True
    column_parallel = (*BY_HEADS[0], "removed", "gain", "sharpness")
    row_parallel, replicated = BY_HEADS[1:]

    def __init__(
        self,
        *args: Any,
        exclusive: str = "none",
        key_offset: float = 0.0,
        query_gain: float | None = None,
        ssmax: bool = False,
        **wiring: Any,
    ) -> None:
        super().__init__(*args, **wiring)
        heads, longest = wiring["n_heads"], max(2, wiring["max_len"])
        self.exclusive, self.shifted = exclusive, round(key_offset * self.d_head)
        self.removed = nn.Parameter(torch.zeros(heads)) if exclusive == "learned" else None
        self.gain = None if query_gain is None else nn.Parameter(torch.full((heads,), float(query_gain)))
        # lgamma(n + 1) = log n!, the sum of log 1 ... log n: with this s the mean factor over the positions is 1.
        self.sharpness = nn.Parameter(torch.full((heads,), longest / math.lgamma(longest + 1))) if ssmax else None

    def keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        k, v = super().keys_values(x, ctx)
        return (self.shift(k, ctx) if self.shifted and ctx.memory is None else k), v

    def shift(self, k: Tensor, ctx: Context) -> Tensor:
        """Replace the last channels of k (B, H_kv, T, d_head) by those of the token before in its document."""
        rows, (past,), key = Rows.of(ctx), cached_state(ctx, ("key offset", self.layer), 1), ("key offset", self.layer)
        own = rows.sorted(merge_heads(k[..., -self.shifted :]))  # (B, T, H_kv * shifted)
        first = rows.starts(own.shape[1], own.device)
        # Without a cached key the first token of the row begins a text, whatever its document.
        if past is None:
            first = torch.cat([torch.ones_like(first[:, :1]), first[:, 1:]], dim=1)
        before, past = previous(own, rows, past)
        if ctx.cache is not None:
            ctx.cache.keep(key, past)
        moved = rows.restored(torch.where(first[..., None], own, before))
        return torch.cat([k[..., : -self.shifted], split_heads(moved, self.shifted)], dim=-1)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        if self.gain is not None:
            q = q * self.gain.to(q.dtype)[:, None, None]
        if self.sharpness is not None:
            log_n = ctx.shared("log of visible keys", lambda: _log_visible(ctx, q))
            q = q * (self.sharpness.to(q.dtype)[:, None, None] * log_n)
        return super().place(q, k, v, ctx)

    def finish(self, y: Tensor, v: Tensor, ctx: Context) -> Tensor:
        if self.exclusive == "none" or ctx.memory is not None:
            return y
        # A unit vector, so the projection needs no division by |v|^2, which can be 0.
        along = F.normalize(repeated(v, y.shape[1]), dim=-1)
        own = (y * along).sum(-1, keepdim=True) * along
        return y - (own if self.removed is None else self.removed.to(y.dtype).tanh()[:, None, None] * own)


def _log_visible(ctx: Context, like: Tensor) -> Tensor:
    """log of the number of keys that each query sees: (), (T, 1) or (B, 1, T, 1)."""
    if ctx.visible is None:
        return like.new_full((), math.log(ctx.key_length))
    return ctx.visible.sum(-1, dtype=like.dtype)[..., None].log()
