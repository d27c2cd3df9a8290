"""Linear attention with decay: a state of fixed size in place of keys and values; causal only."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32, rms
from ablatio_std.attentions._recurrences import accumulate


class Recurrent(SoftmaxAttention):
    """Base of attentions without softmax: the projections, with gated head outputs swish(g_proj x) * norm(o)."""

    float32_products = True
    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False

    def __init__(self, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], **wiring)
        self.g_proj = nn.Linear(wiring["d_model"], wiring["n_heads"] * wiring["d_head"], bias=wiring["bias"])


@attentions.register("retention", paper="arXiv:2307.08621")
class Retention(Recurrent):
    """o_t = sum_{s<=t} gamma_h^(t-s) (q_t . k_s) v_s; y = swish(g x) * norm_h(o), normalized in each head.

    gamma_h = 1 - 2^-(exponent + h), h = 0 ... H - 1.  The paper rotates q and k, as position=rope or xpos does.
    """

    def __init__(
        self,
        *,
        exponent: Annotated[float, Range(0, 32, open_low=True), "gamma of the fastest head is 1 - 2^-exponent"] = 5.0,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(**wiring)
        self.exponent = exponent

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k = ctx.rotate(q, k, self.layer)
        rows, state = Rows.of(ctx), None if ctx.cache is None else ctx.cache.state(self.layer)
        with without_autocast(x.device):
            q, k, v = (rows.sorted(t) for t in at_least_float32(q * self.scale, k, v))
            index = torch.arange(q.shape[1], device=x.device, dtype=q.dtype)
            # log1p: gamma of the slow heads is so near 1 that 1 - 2^-n loses its digits.
            decay = torch.log1p(-torch.exp2(-self.exponent - index))[None, :, None]
            y, last = accumulate(q, k, v, decay, rows, None if state is None else state[0])
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last)
        # The paper's group norm over each head's features: the scale of the sum, which grows with the text, cancels.
        y = F.layer_norm(rows.restored(y), (self.d_head,)).to(x.dtype)
        return F.silu(self.g_proj(x)) * merge_heads(y)


@attentions.register("gla", paper="arXiv:2312.06635")
class GatedLinear(Recurrent):
    """o_t = q_t S_t, S_t = Diag(a_t) S_{t-1} + k_t^T v_t with a decay a_t for each channel of the keys.

    a = sigmoid(x A B + b)^(1 / temperature), A (d_model, rank), B (rank, H * d_head); y = swish(g x) * rmsnorm_h(o),
    with RMSNorm as in the authors' code.  The paper uses position=none and halves the width of q and k.  A rotary
    position rotates q and k.
    """

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(1), "rank of the projection to the decays"] = 16,
        temperature: Annotated[float, Range(0, open_low=True), "tau in sigmoid(...)^(1 / tau)"] = 16.0,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(**wiring)
        self.a_down = nn.Linear(wiring["d_model"], rank, bias=False)
        self.a_up = nn.Linear(rank, wiring["n_heads"] * wiring["d_head"])
        self.temperature, self.norm = temperature, nn.Parameter(torch.ones(wiring["d_head"]))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        decay = split_heads(self.a_up(self.a_down(x)), self.d_head)
        q, k = ctx.rotate(q, k, self.layer)
        rows, (state,) = Rows.of(ctx), cached_state(ctx, self.layer, 1)
        with without_autocast(x.device):
            q, k, v, decay = (rows.sorted(t) for t in at_least_float32(q * self.scale, k, v, decay))
            # The root with 1 / tau starts the decays near 1: with a sigmoid alone half of the state would be lost at
            # each token.
            y, last = accumulate(q, k, v, F.logsigmoid(decay) / self.temperature, rows, state)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last)
        y = (rms(rows.restored(y)) * self.norm).to(x.dtype)
        return F.silu(self.g_proj(x)) * merge_heads(y)


@attentions.register("hgrn2", paper="arXiv:2404.07904")
class HGRN2(SoftmaxAttention):
    """o_t = q_t S_t, S_t = Diag(f_t) S_{t-1} + (1 - f_t)^T v_t: the forget gate f decides what is written, too.

    q = sigmoid(q_proj x), v = swish(v_proj x), f = l + (1 - l) sigmoid(k_proj x), (B, T, H * d_head) each; y =
    rmsnorm(o).  The lower bound l, (H * d_head,), grows with the depth: layer i of n learns it within (i / n,
    (i + 1) / n) and starts near i / n.  In the paper l is a cumulative softmax over the layers, which starts there.  It
    uses position=none; a rotary position rotates q and 1 - f.
    """

    float32_products = True
    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False
    queries_scale = False

    def __init__(self, n_layers: int, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], **wiring)
        inner = wiring["n_heads"] * wiring["d_head"]
        self.n_layers, self.norm = n_layers, nn.Parameter(torch.ones(inner))
        # sigmoid(-6) = 0.0025: l starts at the lower end of its interval.
        self.bound = nn.Parameter(torch.full((inner,), -6.0))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state,) = Rows.of(ctx), cached_state(ctx, self.layer, 1)
        q, f, v = (project(rows.sorted(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        with without_autocast(x.device):
            q, f, v = at_least_float32(q, f, v)
            bound = (self.layer + self.bound.sigmoid()) / self.n_layers  # (H * d_head,)
            # 1 - f written as a product: the difference cancels where f is near 1.
            k, log_f = (1 - bound) * (-f).sigmoid(), torch.log(bound + (1 - bound) * f.sigmoid())
            q, k, v, log_f = (split_heads(t, self.d_head) for t in (q.sigmoid(), k, F.silu(v), log_f))
            q, k = (rows.sorted(t) for t in ctx.rotate(rows.restored(q), rows.restored(k), self.layer))
            y, last = accumulate(q, k, v, log_f, rows, state)
            y = rms(merge_heads(rows.restored(y))) * self.norm
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last)
        return y.to(x.dtype)
