"""The base of attentions that take a softmax over q k^T; a part says what differs."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.knobs import Range
from ablatio.model.attend import Sight, attend, attend_by_steps, merge_heads, split_heads
from ablatio.model.context import Context

KVHeads = Annotated[int | None, Range(1), "heads of keys and values, a divisor of model.n_heads; null: as many"]
QKNorm = Annotated[
    Literal["none", "layernorm", "rmsnorm", "l2"], "norm of each head's queries and keys; l2: cosines times a learned g"
]
Softcap = Annotated[float, Range(0), "c tanh(x / c) of the scores x, before bias and mask; 0: none (arXiv:2408.00118)"]
QKVBias = Annotated[bool | None, "biases of queries, keys and values; by default as model.bias says"]
Sinks = Annotated[bool, "a learned logit in each head for looking at nothing (arXiv:2309.17453)"]


class AttentionWiring(TypedDict):
    """What the model hands to an attention; scale: of q k^T; inner_norm: makes the norm before o_proj, or None."""

    d_model: int
    d_head: int
    n_heads: int
    max_len: int
    bias: bool
    dropout: float
    layer: int
    scale: float
    inner_norm: Callable[[int], nn.Module] | None


class SoftmaxAttention(nn.Module):
    """o(softmax(scale q k^T + bias) v), with `n_kv_heads` heads for keys and values.  (B, T, D) -> same.

    A part overrides `place` to look at other keys, `mix` to weigh them in another way, `heads` to change the outcome.

    qk_norm  of each head, before positions turn it; l2: g cos(q, k), g starts at log2(L^2 - L), L = max_len
             (arXiv:2010.04245)
    softcap, sinks  see their types above
    """

    cross = True

    def __init__(
        self,
        n_kv_heads: int,
        *,
        d_model: int,
        d_head: int,
        n_heads: int,
        max_len: int,
        bias: bool,
        dropout: float,
        layer: int,
        scale: float,
        inner_norm: Callable[[int], nn.Module] | None,
        qk_norm: str = "none",
        softcap: float = 0.0,
        sinks: bool = False,
        qkv_bias: bool | None = None,
    ) -> None:
        super().__init__()
        inner = bias if qkv_bias is None else qkv_bias
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=inner)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=inner)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=inner)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=bias)
        self.inner_norm = inner_norm(n_heads * d_head) if inner_norm else None
        self.d_head, self.dropout, self.layer, self.softcap = d_head, dropout, layer, softcap
        self.scale = 1.0 if qk_norm == "l2" else scale
        self.q_norm, self.k_norm = _head_norms(qk_norm, d_head, max_len)
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.project(self.heads(x, ctx))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, D) -> (B, T, H * d_head): what the heads say."""
        q = self.queries(x)
        k, v = ctx.keys_values(self.layer, x, lambda x: self.keys_values(x, ctx))
        q, k, v, sight = self.place(q, k, v, ctx)
        return merge_heads(self.mix(q, k, v, sight))

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d_head)."""
        q = split_heads(self.q_proj(x), self.d_head)
        return q if self.q_norm is None else self.q_norm(q).to(q.dtype)

    def keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> (B, H_kv, S, d_head), twice."""
        k, v = split_heads(self.k_proj(x), self.d_head), split_heads(self.v_proj(x), self.d_head)
        return (k if self.k_norm is None else self.k_norm(k).to(k.dtype)), v

    def place(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Context | Sight]:
        """q, k turned by their positions, all keys and values up to now, and what the queries see of them."""
        return *ctx.place(self.layer, q, k, v), ctx

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | Sight) -> Tensor:
        """q (B, H, T, d_head); k, v (B, H_kv, S, d_head) -> (B, H, T, d_head)."""
        dropout = self.dropout if self.training else 0.0
        if not self.softcap and self.sinks is None:
            return attend(q, k, v, ctx, scale=self.scale, dropout=dropout)
        cap = self.cap if self.softcap else None
        return attend_by_steps(q, k, v, ctx, scale=self.scale, dropout=dropout, on_scores=cap, sinks=self.sinks)

    def cap(self, scores: Tensor) -> Tensor:
        """Smoothly kept between -softcap and softcap."""
        return self.softcap * torch.tanh(scores / self.softcap)

    def project(self, y: Tensor) -> Tensor:
        """(B, T, H * d_head) -> (B, T, D)."""
        y = self.o_proj(y if self.inner_norm is None else self.inner_norm(y))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class _Directions(nn.Module):
    """x / |x|, times a learned g where one is given."""

    def __init__(self, gain: float | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain])) if gain is not None else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return x if self.gain is None else self.gain * x


def _head_norms(kind: str, d_head: int, max_len: int) -> tuple[nn.Module | None, nn.Module | None]:
    if kind == "none":
        return None, None
    if kind == "l2":
        return _Directions(math.log2(max(2, max_len * max_len - max_len))), _Directions()
    if kind == "layernorm":
        return nn.LayerNorm(d_head), nn.LayerNorm(d_head)
    return RMSNorm(d_head), RMSNorm(d_head)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6), times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
