"""Memories in place of a feed-forward layer: a token reads few of many trained values, found by product keys."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, mlps, rule
from ablatio.model.context import Context

Keys = Annotated[int, Range(2, 4096), "keys n of each half of a query; there are n^2 values"]
Heads = Annotated[int, Range(1, 64), "queries of a token, each with keys of its own; all read the same values"]
TopK = Annotated[int, Range(1, 1024), "values that a head reads"]
KeyWidth = Annotated[int | None, Range(1), "width of each half of a query; null: d_model / 2"]


class ProductKeys(nn.Module):
    """Read n^2 values V by 2 n keys in each head: sum_i w_i V_i, w = softmax of the `top_k` largest scores s_i.

    s_i = q_1 . k_a + q_2 . k'_b for value i = n a + b; q_1 and q_2 are the halves of q_proj x, normalized to RMS 1.
    The largest sums are among those of the top_k largest terms of each half.  (B, T, D) -> same.
    """

    roles = {"values": "vector"}  # noqa: RUF012  (a table that keeps its own initial scale)

    def __init__(self, d_model: int, keys: int, heads: int, top_k: int, key_width: int | None) -> None:
        super().__init__()
        width = key_width or max(1, d_model // 2)
        self.heads, self.top_k, self.fans = heads, top_k, (keys, width)
        self.q_proj = nn.Linear(d_model, heads * 2 * width, bias=False)
        self.keys = nn.Parameter(torch.randn(2 * heads, keys, width) * width**-0.5)
        # Rows of about length 1, as in the authors' code.
        self.values = nn.Parameter(torch.randn(keys**2, d_model) * d_model**-0.5)
        self.idle_parameters = max(0, keys**2 - heads * top_k) * d_model

    def forward(self, x: Tensor) -> Tensor:
        """Read the values that each token chooses: (B, T, D) -> same."""
        keys, width = self.fans
        q = self.q_proj(x).flatten(0, 1).unflatten(-1, (2 * self.heads, width)).transpose(0, 1)  # (2 H, B * T, width)
        halves = F.rms_norm(q, (width,)) @ self.keys.to(q.dtype).mT  # (2 H, B * T, n)
        (first, a), (second, b) = (
            h.topk(min(self.top_k, keys), dim=-1) for h in halves.unflatten(0, (-1, 2)).unbind(1)
        )
        # top_k^2 sums instead of n^2 scores: a value outside the best top_k of a half has top_k values above it.
        sums = (first[..., :, None] + second[..., None, :]).flatten(-2)
        scores, best = sums.to(self.values.dtype).topk(self.top_k, dim=-1)  # (H, B * T, top_k)
        index = (a[..., :, None] * keys + b[..., None, :]).flatten(-2).gather(-1, best)
        index, shares = (t.transpose(0, 1).flatten(1) for t in (index, scores.softmax(-1)))  # (B * T, H * top_k)
        # Reads and sums the values in one kernel, without a copy (B T, H top_k, D).
        read = F.embedding_bag(index, self.values, per_sample_weights=shares.to(self.values.dtype), mode="sum")
        return read.view(x.shape).to(x.dtype)


@mlps.register("product_key", paper="arXiv:1907.05242")
class ProductKeyMemory(nn.Module):
    """sum_h sum_i w_hi V_i over the `top_k` of n^2 trained values whose product keys fit a head's query best (PKM).

    The score of value i = n a + b is q_1 . k_a + q_2 . k'_b, the halves of the query with n keys each: 2 n products
    find the best of n^2.  w is their softmax.  Queries are normalized to RMS 1, where the paper normalizes them over
    the batch, and has keys=512 and top_k=32 of width 256 / 2.  (B, T, D) -> same.
    """

    def __init__(
        self,
        d_model: int,
        dropout: float,
        *,
        keys: Keys = 32,
        heads: Heads = 4,
        top_k: TopK = 16,
        key_width: KeyWidth = None,
    ) -> None:
        super().__init__()
        self.memory, self.dropout = ProductKeys(d_model, keys, heads, top_k, key_width), dropout

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y: Tensor = self.memory(x)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


@mlps.register("memory", paper="arXiv:2412.09764")
class MemoryLayer(nn.Module):
    """down(silu(gate(x)) * m(x)), m the memory of mlp=product_key: values gated by the token that reads them (Memory+).

    Every layer has values of its own; the authors share them between three layers.  (B, T, D) -> same.
    """

    def __init__(
        self,
        d_model: int,
        bias: bool,
        dropout: float,
        *,
        keys: Keys = 32,
        heads: Heads = 4,
        top_k: TopK = 16,
        key_width: KeyWidth = None,
    ) -> None:
        super().__init__()
        self.memory = ProductKeys(d_model, keys, heads, top_k, key_width)
        self.gate_proj, self.down_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(2))
        self.dropout = dropout

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = self.down_proj(F.silu(self.gate_proj(x)) * self.memory(x))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


rule(
    when="mlp.name in ('product_key', 'memory') and mlp.top_k > mlp.keys * mlp.keys",
    why="mlp.keys={mlp.keys} keys of each half give {mlp.keys * mlp.keys} values, of which a head cannot read "
    "mlp.top_k={mlp.top_k}",
    fix="mlp.top_k={mlp.keys}",
    where="mlp.top_k",
)
