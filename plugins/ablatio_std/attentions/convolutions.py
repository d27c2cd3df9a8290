"""Short causal convolutions: as the only mixer of tokens, and in front of softmax attention."""

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

Width = Annotated[int, Range(1), "tokens that a convolution reaches over, its own included"]


def convolve(convs: Iterable[nn.Module], inputs: Sequence[Tensor], layer: int, ctx: Context) -> list[Tensor]:
    """Each input (B, T, D) through its convolution, within documents; the cache holds the last inputs."""
    rows, found = Rows.of(ctx), []
    state = None if ctx.cache is None else ctx.cache.state(layer)
    for i, (conv, x) in enumerate(zip(convs, inputs, strict=True)):
        found.append(conv(rows.sorted(x), rows, None if state is None else state[i]))
    if ctx.cache is not None:
        ctx.cache.keep(layer, *(past for _, past in found))
    return [rows.restored(y) for y, _ in found]


@attentions.register("convolution", paper="arXiv:2312.04927")
class Convolution(nn.Module):
    """o((g_proj x) * (conv(v_proj x) + c)): tokens mix by a gated causal convolution alone.  (B, T, D) -> same.

    The BaseConv of the paper, with a projection before and behind it.  What a query looks for cannot change where it
    looks, which is what multi-query recall asks for.
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
    when="attention.name == 'convolution' and 'rotate' in facts.position.uses",
    why="position={position.name} turns queries and keys, and attention=convolution has none",
    fix="position=none",
    where="position",
)


@attentions.register("conv_mha", paper="arXiv:2109.08668")
class ConvolvedMultiHead(SoftmaxAttention):
    """Softmax attention to x + conv(x): a short causal convolution lets each token carry the ones before it.

    on=projections: a convolution for each of q, k and v (Primer's multi-dconv-head); on=input: one before all three.
    They start at zero, so that the model starts as attention=mha.
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
        for made in convs:
            nn.init.zeros_(made.weight)
        self.on, self.convs = on, nn.ModuleList(convs)

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        given = [x] if self.on == "input" else [p(x) for p in (self.q_proj, self.k_proj, self.v_proj)]
        mixed = convolve(self.convs, given, self.layer, ctx)
        found = [a + b.to(a.dtype) for a, b in zip(given, mixed, strict=True)]
        if self.on == "input":
            return super().heads(found[0], ctx)
        q, k, v = (split_heads(t, self.d_head) for t in found)
        q, k, v, sight = self.place(q, k, v, ctx)
        return merge_heads(self.mix(q, k, v, sight))
