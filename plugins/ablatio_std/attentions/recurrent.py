"""Recurrent attention with decay: a state of fixed size in place of keys and values; causal only."""

from typing import Annotated, Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, SoftmaxAttention
from ablatio.model.context import Context
from ablatio_std.attentions._common import (
    Rows,
    ShortConv,
    accumulate,
    at_least_float32,
    chunks,
    without_autocast,
)


class Recurrent(SoftmaxAttention):
    """Base of attentions without softmax: the projections, with gated head outputs swish(g_proj x) * norm(o)."""

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
            decay = torch.log1p(-torch.exp2(-self.exponent - index))[None, :, None]
            y, last = accumulate(q, k, v, decay, rows, None if state is None else state[0])
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last)
        y = F.layer_norm(rows.restored(y), (self.d_head,)).to(x.dtype)
        return F.silu(self.g_proj(x)) * merge_heads(y)


@attentions.register("gated_deltanet", paper="arXiv:2412.06464")
class GatedDeltaNet(Recurrent):
    """o_t = S_t q_t, S_t = a_t S_{t-1} (1 - b_t k_t k_t^T) + b_t v_t k_t^T: writes correct the value stored for k_t.

    b = sigmoid(b_proj x) and log a = -A softplus(a_proj x + dt) in each head, (B, T, H); q, k and v pass a short
    convolution and SiLU, q and k are normalized to length 1; y = swish(g x) * rmsnorm_h(o).  A is initialized uniformly
    in [1, 16), dt so that softplus(dt) is in [0.001, 0.1], as in Mamba 2.  The paper uses position=none; a rotary
    position rotates q and k.
    """

    queries_scale = False

    def __init__(
        self,
        *,
        conv: Annotated[int, Range(1), "width of the convolutions of q, k and v; 1: a scale for each channel"] = 4,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(**wiring)
        heads, width = wiring["n_heads"], wiring["d_head"]
        self.a_proj, self.b_proj = (nn.Linear(wiring["d_model"], heads, bias=False) for _ in range(2))
        self.q_conv, self.k_conv, self.v_conv = (ShortConv(heads * width, conv) for _ in range(3))
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        step = torch.exp(torch.empty(heads).uniform_(-6.9, -2.3))
        self.dt = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt) = step
        self.norm = nn.Parameter(torch.ones(width))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        rows = Rows.of(ctx)
        inner = rows.sorted(x)
        state: tuple[Any, ...] = (None,) * 4  # S, and the last inputs of the three convolutions
        if ctx.cache is not None:
            state = ctx.cache.state(self.layer) or state
        (q, q_past), (k, k_past), (v, v_past) = (
            conv(project(inner), rows, past)
            for project, conv, past in zip(
                (self.q_proj, self.k_proj, self.v_proj),
                (self.q_conv, self.k_conv, self.v_conv),
                state[1:],
                strict=True,
            )
        )
        q, k, v = (split_heads(F.silu(t), self.d_head) for t in (q, k, v))
        with without_autocast(x.device):
            q, k, v, a, b = at_least_float32(q, k, v, self.a_proj(inner), self.b_proj(inner))
            q, k = F.normalize(q, dim=-1) * self.scale, F.normalize(k, dim=-1)
            q, k = (rows.sorted(t) for t in ctx.rotate(rows.restored(q), rows.restored(k), self.layer))
            log_decay = (-self.log_a.exp() * F.softplus(a + self.dt)).transpose(1, 2)  # (B, H, T)
            y, last = delta_rule(q, k, v, log_decay, b.sigmoid().transpose(1, 2), rows, state[0])
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * self.norm
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, q_past, k_past, v_past)
        return F.silu(self.g_proj(x)) * merge_heads(rows.restored(y)).to(x.dtype)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs o, (B, H, T, V), and last state, (B, H, F, V), of the gated delta rule.

    q, k (B, H, T, F), v (B, H, T, V), log_decay = log a and rate = b (B, H, T), all in the order of `rows`; `state`
    (B, H, F, V) precedes the first token, None for zero.

    Each token writes u_t = b_t (v_t - a_t S_{t-1}^T k_t).  Within a chunk u_t depends on the earlier writes, so that
    the u of a chunk solve one triangular system.
    """
    last = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for part, within, start, end, whole in chunks(q.shape[2], log_decay, rows):
        q_, k_, b = q[:, :, part], k[:, :, part], rate[:, :, part, None]
        system = (b * (k_ @ k_.mT) * within).tril(-1) + torch.eye(k_.shape[2], dtype=k.dtype, device=k.device)
        target = b * (v[:, :, part] - (k_ * start) @ last)  # (B, H, C, V)
        u = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
        outputs.append((q_ @ k_.mT * within) @ u + (q_ * start) @ last)
        last = last * whole + (k_ * end).mT @ u
    return torch.cat(outputs, dim=2), last
