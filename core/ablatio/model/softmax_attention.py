"""The base of attentions that take a softmax over q k^T; a part says what differs."""

from collections.abc import Callable
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.attend import attend, merge_heads, split_heads
from ablatio.model.context import Context


class AttentionWiring(TypedDict):
    """What the model hands to an attention; scale: of q k^T; inner_norm: makes the norm before o_proj, or None."""

    d_model: int
    d_head: int
    n_heads: int
    bias: bool
    dropout: float
    layer: int
    scale: float
    inner_norm: Callable[[int], nn.Module] | None


class SoftmaxAttention(nn.Module):
    """o(softmax(scale q k^T + bias) v), with `n_kv_heads` heads for keys and values.  (B, T, D) -> same.

    A part overrides `mix` to look at other keys or in another way; q, k, v are placed and cached by then.
    """

    cross = True

    def __init__(
        self,
        n_kv_heads: int,
        *,
        d_model: int,
        d_head: int,
        n_heads: int,
        bias: bool,
        dropout: float,
        layer: int,
        scale: float,
        inner_norm: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=bias)
        self.inner_norm = inner_norm(n_heads * d_head) if inner_norm else None
        self.d_head, self.dropout, self.layer, self.scale = d_head, dropout, layer, scale

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q = split_heads(self.q_proj(x), self.d_head)  # (B, H, T, d_head)
        k, v = ctx.keys_values(self.layer, x, self.keys_values)
        q, k, v = ctx.place(self.layer, q, k, v)  # k, v (B, H_kv, S, d_head)
        y = merge_heads(self.mix(q, k, v, ctx))
        y = self.o_proj(y if self.inner_norm is None else self.inner_norm(y))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> (B, H_kv, S, d_head), twice."""
        return split_heads(self.k_proj(x), self.d_head), split_heads(self.v_proj(x), self.d_head)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
        """q (B, H, T, d_head); k, v (B, H_kv, S, d_head) -> (B, H, T, d_head)."""
        return attend(q, k, v, ctx, scale=self.scale, dropout=self.dropout if self.training else 0.0)
