"""Short causal convolutions: as the only mixing of tokens, and before softmax attention."""

from collections.abc import Callable
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import ShortConv, convolve

Width = Annotated[int, Range(1), "number of tokens in the convolution, the current one included"]


@attentions.register("convolution", paper="arXiv:2312.04927")
class Convolution(nn.Module):
    """o((g_proj x) * (conv(v_proj x) + c)): a gated causal convolution in place of attention.  (B, T, D) -> same.

    The paper's BaseConv between two projections.  Its mixing weights do not depend on the input, so it lacks what
    multi-query recall needs.
    """

    takes_bias = False
    bidirectional = False

    def __init__(
        self,
        d_model: int,
        bias: bool,
        dropout: float,
        layer: int,
        inner_norm: Callable[[int], nn.Module] | None,
        *,
        width: Width = 4,
    ) -> None:
        super().__init__()
        self.g_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(3))
        self.conv, self.shift = ShortConv(d_model, width), nn.Parameter(torch.zeros(d_model))
        self.inner_norm = inner_norm(d_model) if inner_norm else None
        self.dropout, self.layer = dropout, layer

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        (mixed,) = convolve([self.conv], [self.v_proj(x)], self.layer, ctx)
        y = self.g_proj(x) * (mixed + self.shift).to(x.dtype)
        y = self.o_proj(y if self.inner_norm is None else self.inner_norm(y))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


rule(
    when="attention.name in ('convolution', 'mamba', 'mamba2', 'mingru', 'rwkv7') and 'rotate' in facts.position.uses",
    why="position={position.name} rotates queries and keys, which attention={attention.name} does not have",
    fix="position=none",
    where="position",
)


@attentions.register("conv_mha", paper="arXiv:2109.08668")
class ConvolvedMultiHead(SoftmaxAttention):
    """Softmax attention on y + conv(y), a short causal convolution that adds the preceding tokens to each token.

    on=projections: y is q, k and v, with a convolution for each (Primer's multi-dconv-head, the layer Canon-B of
    arXiv:2512.17351).  on=input: y is x (Canon-A).  on=both: one after the other; mlp=canon has Canon-C and D.  The
    convolutions are initialized to zero, so that the initial model is that of attention=mha.
    """

    cross = False
    bidirectional = False

    def __init__(
        self,
        *,
        conv: Width = 4,
        on: Literal["input", "projections", "both"] = "projections",
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        n_kv = n_kv_heads or wiring["n_heads"]
        super().__init__(n_kv, **wiring)
        queries, keys = wiring["n_heads"] * wiring["d_head"], n_kv * wiring["d_head"]
        channels = [wiring["d_model"]] * (on != "projections") + [queries, keys, keys] * (on != "input")
        convs = [ShortConv(n, conv) for n in channels]
        for module in convs:
            # y + conv(y): at 0 the layer is plain attention, whatever the init of the other matrices.
            nn.init.zeros_(module.weight)
        self.on, self.convs = on, nn.ModuleList(convs)

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        convs, key = list(self.convs), self.layer
        if self.on != "projections":
            # Its own cache entry where the layer has two convolutions.
            (mixed,) = convolve(convs[:1], [x], ("input", key) if self.on == "both" else key, ctx)
            x, convs = x + mixed.to(x.dtype), convs[1:]
        if self.on == "input":
            return super().heads(x, ctx)
        inputs = [p(x) for p in (self.q_proj, self.k_proj, self.v_proj)]
        # In one call, so that the layer has one cache entry for the three.
        mixed = convolve(convs, inputs, key, ctx)
        q, k, v = (split_heads(a + b.to(a.dtype), self.d_head) for a, b in zip(inputs, mixed, strict=True))
        q, k, v, view = self.place(q, k, v, ctx)
        return merge_heads(self.mix(q, k, v, view))
