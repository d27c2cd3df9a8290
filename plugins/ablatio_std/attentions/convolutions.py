"""Short causal convolutions: as the only mixing of tokens, and before softmax attention."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads, SoftmaxAttention
from ablatio.model.context import Context
from ablatio_std.attentions._common import Rows, ShortConv

Width = Annotated[int, Range(1), "number of tokens in the convolution, the current one included"]


def convolve(convs: Iterable[nn.Module], inputs: Sequence[Tensor], layer: int, ctx: Context) -> list[Tensor]:
    """Apply to each input (B, T, D) its convolution, within documents; the cache keeps the last inputs of each."""
    rows, results = Rows.of(ctx), []
    state = None if ctx.cache is None else ctx.cache.state(layer)
    for i, (conv, x) in enumerate(zip(convs, inputs, strict=True)):
        results.append(conv(rows.sorted(x), rows, None if state is None else state[i]))
    if ctx.cache is not None:
        ctx.cache.keep(layer, *(past for _, past in results))
    return [rows.restored(y) for y, _ in results]


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

    on=projections: y is q, k and v, with a convolution for each (Primer's multi-dconv-head).  on=input: y is x.  The
    convolutions are initialized to zero, so that the initial model is that of attention=mha.
    """

    cross = False
    bidirectional = False

    def __init__(
        self,
        *,
        conv: Width = 4,
        on: Literal["input", "projections"] = "projections",
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        n_kv = n_kv_heads or wiring["n_heads"]
        super().__init__(n_kv, **wiring)
        queries, keys = wiring["n_heads"] * wiring["d_head"], n_kv * wiring["d_head"]
        channels = [wiring["d_model"]] if on == "input" else [queries, keys, keys]
        convs = [ShortConv(n, conv) for n in channels]
        for module in convs:
            nn.init.zeros_(module.weight)
        self.on, self.convs = on, nn.ModuleList(convs)

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        inputs = [x] if self.on == "input" else [p(x) for p in (self.q_proj, self.k_proj, self.v_proj)]
        mixed = convolve(self.convs, inputs, self.layer, ctx)
        outputs = [a + b.to(a.dtype) for a, b in zip(inputs, mixed, strict=True)]
        if self.on == "input":
            return super().heads(outputs[0], ctx)
        q, k, v = (split_heads(t, self.d_head) for t in outputs)
        q, k, v, view = self.place(q, k, v, ctx)
        return merge_heads(self.mix(q, k, v, view))
