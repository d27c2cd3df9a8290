"""Softmax attention with as many key-value heads as queries, fewer, or one."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attend import attend, merge_heads, split_heads
from ablatio.model.context import Context


class _Attention(nn.Module):
    """o(softmax(q k^T / sqrt(d_head)) v), with `n_kv_heads` heads for keys and values."""

    def __init__(
        self, d_model: int, d_head: int, n_heads: int, n_kv_heads: int, bias: bool, dropout: float, layer: int
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=bias)
        self.d_head, self.dropout, self.layer = d_head, dropout, layer

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q = split_heads(self.q_proj(x), self.d_head)  # (B, H, T, d_head)
        k = split_heads(self.k_proj(x), self.d_head)  # (B, H_kv, T, d_head)
        v = split_heads(self.v_proj(x), self.d_head)
        q, k = ctx.rotate(q, k)
        k, v = ctx.remember(self.layer, k, v)  # (B, H_kv, S, d_head)
        y = attend(q, k, v, ctx, dropout=self.dropout if self.training else 0.0)
        y = self.o_proj(merge_heads(y))  # (B, T, D)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


@attentions.register("mha", paper="arXiv:1706.03762")
class MultiHead(_Attention):
    """softmax(q k^T / sqrt(d_head)) v in each of n_heads heads, each with keys and values of its own."""

    def __init__(self, d_model: int, d_head: int, n_heads: int, bias: bool, dropout: float, layer: int) -> None:
        super().__init__(d_model, d_head, n_heads, n_heads, bias, dropout, layer)


@attentions.register("mqa", paper="arXiv:1911.02150")
class MultiQuery(_Attention):
    """All heads share one head of keys and values: the cache is n_heads times smaller."""

    def __init__(self, d_model: int, d_head: int, n_heads: int, bias: bool, dropout: float, layer: int) -> None:
        super().__init__(d_model, d_head, n_heads, 1, bias, dropout, layer)


@attentions.register("gqa", paper="arXiv:2305.13245")
class GroupedQuery(_Attention):
    """Groups of n_heads / n_kv_heads heads share keys and values."""

    def __init__(
        self,
        d_model: int,
        d_head: int,
        n_heads: int,
        bias: bool,
        dropout: float,
        layer: int,
        *,
        n_kv_heads: Annotated[int, Range(1), "heads of keys and values; a divisor of model.n_heads"] = 2,
    ) -> None:
        super().__init__(d_model, d_head, n_heads, n_kv_heads, bias, dropout, layer)


rule(
    when="attention.name == 'gqa'",
    unless="model.n_heads % attention.n_kv_heads == 0",
    why="each group of heads shares one key-value head, so n_kv_heads={attention.n_kv_heads} must divide "
    "model.n_heads={model.n_heads}",
    fix="attention.n_kv_heads={nearest_divisor(model.n_heads, attention.n_kv_heads)}",
)
