"""Base class of attentions with a softmax over q k^T; a part overrides what differs."""

import math
from collections.abc import Callable
from typing import Annotated, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.attention.kernels import AttentionView, attend, attend_by_steps, merge_heads, split_heads
from ablatio.model.context import Context
from ablatio.registry.knobs import OptionOf, Range, Schedulable

KVHeads = Annotated[int | None, Range(1), "number of key and value heads, a divisor of model.n_heads; null: n_heads"]
WHOLE = "whole_"
QKNorm = Annotated[
    str,
    OptionOf("norm", also=("none", "l2"), forms=("{}", f"{WHOLE}{{}}")),
    "norm of each head's queries and keys, or of all heads' as a whole; l2: cosines times a learned g",
]
VNorm = Annotated[str, OptionOf("norm", also=("none",), forms=("{}", f"{WHOLE}{{}}")), "norm of the values, likewise"]
Softcap = Annotated[
    float,
    Range(0),
    Schedulable(),
    "c in c tanh(x / c), applied to the scores before bias and mask; 0: off (arXiv:2408.00118)",
]
QKVBias = Annotated[bool | None, "biases of the query, key and value projections; null: as model.bias"]
Sinks = Annotated[bool, "a learned logit per head for attending to no key (arXiv:2309.17453)"]

# How the heads of softmax attention are divided over devices: `column_parallel, row_parallel, replicated = BY_HEADS`.
BY_HEADS = ("q_proj", "k_proj", "v_proj", "sinks"), ("o_proj",), ("q_norm", "k_norm", "v_norm")


class AttentionWiring(TypedDict):
    """Arguments that the model passes to an attention.

    scale       factor on q k^T
    inner_norm  builds the norm before o_proj, or None
    head_norm   builds an option of the kind `norm` for a submodule: (option, name of the submodule, width)
    """

    d_model: int
    d_head: int
    n_heads: int
    max_len: int
    bias: bool
    dropout: float
    layer: int
    scale: float
    inner_norm: Callable[[int], nn.Module] | None
    head_norm: Callable[[str, str, int], nn.Module]


class SoftmaxAttention(nn.Module):
    """y = o_proj(softmax(scale q k^T + bias) v) with `n_kv_heads` key and value heads.  (B, T, D) -> same.

    A part overrides `place` to attend to other keys, `mix` to weight them differently, `finish` to change what a head
    gives, `heads` to change the output.

    qk_norm  of each head, before positions turn it; l2: g cos(q, k), g starts at log2(L^2 - L), L = max_len
             (arXiv:2010.04245); whole_...: of all heads together, as in OLMo 2 (arXiv:2501.00656)
    v_norm   of the values; with qk_norm it is the QKV norm of HybridNorm (arXiv:2503.04598)
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
        head_norm: Callable[[str, str, int], nn.Module],
        qk_norm: str = "none",
        v_norm: str = "none",
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
        self.value_width = n_kv_heads * d_head
        self.scale = 1.0 if qk_norm == "l2" else scale
        self.whole_qk, self.whole_v = qk_norm.startswith(WHOLE), v_norm.startswith(WHOLE)
        self.q_norm: nn.Module | None
        self.k_norm: nn.Module | None
        if qk_norm == "l2":
            gain = math.log2(max(2, max_len * max_len - max_len))
            self.q_norm, self.k_norm = _Directions(gain), _Directions()
        else:
            self.q_norm = _norm(head_norm, "q_norm", qk_norm, d_head, n_heads)
            self.k_norm = _norm(head_norm, "k_norm", qk_norm, d_head, n_kv_heads)
        self.v_norm = _norm(head_norm, "v_norm", v_norm, d_head, n_kv_heads)
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Attention output: (B, T, D) -> (B, T, D)."""
        return self.project(self.heads(x, ctx))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        """Concatenated head outputs before o_proj: (B, T, D) -> (B, T, H * d_head)."""
        q = self.queries(x)
        k, new = ctx.keys_values(self.layer, x, lambda x: self.keys_values(x, ctx))
        q, k, v, sight = self.place(q, k, new, ctx)
        return merge_heads(self.finish(self.mix(q, k, v, sight), new, ctx))

    def queries(self, x: Tensor) -> Tensor:
        """Queries before rotation: (B, T, D) -> (B, H, T, d_head)."""
        return self._heads(self.q_proj(x), self.q_norm, self.whole_qk)

    def keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Keys and values before rotation: (B, S, D) -> (B, H_kv, S, d_head) each."""
        of_keys, of_values = ctx.inputs(self.layer, x)
        k = self._heads(self.k_proj(of_keys), self.k_norm, self.whole_qk)
        v = ctx.with_values(self.layer, self.v_proj(of_values), x)
        return k, self._heads(v, self.v_norm, self.whole_v)

    def _heads(self, x: Tensor, norm: nn.Module | None, whole: bool) -> Tensor:
        """(B, T, H * d_head) -> (B, H, T, d_head), normed before or after it is split."""
        if norm is None:
            return split_heads(x, self.d_head)
        normed: Tensor = split_heads(norm(x), self.d_head) if whole else norm(split_heads(x, self.d_head))
        return normed.to(x.dtype)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        """Return rotated queries, all (cached and new) rotated keys, all values, and what the queries may see."""
        return *ctx.place(self.layer, q, k, v), ctx

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView) -> Tensor:
        """Weighted values: q (B, H, T, d_head); k, v (B, H_kv, S, d_head) -> (B, H, T, d_head)."""
        dropout = self.dropout if self.training else 0.0
        if not self.softcap and self.sinks is None:
            return attend(q, k, v, ctx, scale=self.scale, dropout=dropout)
        return attend_by_steps(q, k, v, ctx, scale=self.scale, dropout=dropout, softcap=self.softcap, sinks=self.sinks)

    def finish(self, y: Tensor, v: Tensor, ctx: Context) -> Tensor:
        """Change the mixed values y (B, H, T, d_head), given the values of the new tokens, (B, H_kv, T, d_head)."""
        return y

    def project(self, y: Tensor) -> Tensor:
        """Output projection: (B, T, H * d_head) -> (B, T, D)."""
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


def _norm(
    make: Callable[[str, str, int], nn.Module], name: str, option: str, d_head: int, heads: int
) -> nn.Module | None:
    """Of each head, or of all `heads` together; None for the option `none`."""
    width = d_head * heads if option.startswith(WHOLE) else d_head
    return None if option == "none" else make(option.removeprefix(WHOLE), name, width)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6), times a gain: for vectors so short that the kernels of norm=rmsnorm gain nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> same."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
