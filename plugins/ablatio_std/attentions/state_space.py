"""State-space models and minimal recurrent networks, with a state for each channel; causal only."""

import math
from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, ShortConv, cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import Mixer, MixerWiring, at_least_float32, rms, step_sizes
from ablatio_std.attentions._recurrences import accumulate
from ablatio_std.attentions._scans import scan, selective_scan

Expand = Annotated[int, Range(1), "number of channels as a multiple of the input's"]
Conv = Annotated[int, Range(1), "width of the convolution before the recurrence; 1: a scale for each channel"]


@attentions.register("mamba", paper="arXiv:2312.00752")
class Mamba(Mixer):
    """h_t = exp(s_t A) * h_{t-1} + s_t u_t B_t, y_t = (h_t . C_t + D u_t) * SiLU(z_t), with u_t, s_t in each channel.

    u, z = in_proj x, (B, T, expand * d_model) each; u passes a short convolution and SiLU.  s = softplus(dt +
    dt_proj x_proj u) through `rank` numbers, B and C (B, T, state) = x_proj u; h (B, T, channels, state).  A < 0
    (channels, state) starts at -1 ... -state, D at 1, dt so that softplus(dt) is in [0.001, 0.1].

    Takes no position.  h is computed token by token, in small operations that a GPU does slowly.
    """

    float32_products = True
    roles = {"log_a": "vector"}  # noqa: RUF012  (no init replaces -1 ... -state)

    def __init__(
        self,
        *,
        state: Annotated[int, Range(1), "numbers in the state of a channel"] = 16,
        expand: Expand = 2,
        conv: Conv = 4,
        rank: Annotated[int | None, Range(1), "rank of the projection to s; null: d_model / 16"] = None,
        **wiring: Unpack[MixerWiring],
    ) -> None:
        width = wiring["d_model"]
        inner, self.rank = expand * width, rank or math.ceil(width / 16)
        super().__init__(inner, **wiring)
        self.in_proj = nn.Linear(width, 2 * inner, bias=wiring["bias"])
        self.conv = ShortConv(inner, conv, bias=True)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj, self.dt = nn.Linear(self.rank, inner, bias=False), nn.Parameter(step_sizes(inner))
        self.log_a = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.state = state

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state, past) = Rows.of(ctx), cached_state(ctx, self.layer, 2)
        u, z = self.in_proj(rows.sorted(x)).chunk(2, dim=-1)
        u, past = self.conv(u, rows, past)
        u = F.silu(u)
        low, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        step = self.dt_proj(low)
        with without_autocast(x.device):
            u, b, c, step = at_least_float32(u, b, c, step)
            step = F.softplus(step + self.dt)  # (B, T, channels)
            # B is scaled by s (Euler) and A by exp(s A), as in the authors' code.
            y, last = selective_scan(step * u, step, -self.log_a.exp(), b, c, rows, state)
            y = y + self.skip * u
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, past)
        return self.project(rows.restored(y.to(x.dtype) * F.silu(z)))


@attentions.register("mamba2", paper="arXiv:2405.21060")
class Mamba2(Mixer):
    """S_t = exp(s_t A) S_{t-1} + s_t B_t^T u_t, o_t = C_t S_t + D u_t in each head; y = rmsnorm(o * SiLU(z)).

    z, u (B, T, expand * n_heads * d_head), B, C (B, T, state) and s (B, T, heads) = in_proj x, with B and C shared by
    all expand * n_heads heads; u, B and C pass a short convolution and SiLU; s becomes softplus(s + dt).  A < 0 and D
    in each head: -A starts uniformly in [1, 16), D at 1, dt so that softplus(dt) is in [0.001, 0.1].

    Takes no position.
    """

    float32_products = True

    def __init__(
        self,
        d_head: int,
        n_heads: int,
        *,
        state: Annotated[int, Range(1), "rows of the state of a head, the width of B and C"] = 128,
        expand: Expand = 2,
        conv: Conv = 4,
        **wiring: Unpack[MixerWiring],
    ) -> None:
        heads = expand * n_heads
        inner = heads * d_head
        super().__init__(inner, **wiring)
        self.sizes, self.d_head, self.state = (inner, inner + 2 * state, heads), d_head, state
        self.in_proj = nn.Linear(wiring["d_model"], sum(self.sizes), bias=wiring["bias"])
        self.conv = ShortConv(inner + 2 * state, conv, bias=True)
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt, self.skip = nn.Parameter(step_sizes(heads)), nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state, past) = Rows.of(ctx), cached_state(ctx, self.layer, 2)
        z, mixed, step = self.in_proj(rows.sorted(x)).split(self.sizes, dim=-1)
        mixed, past = self.conv(mixed, rows, past)
        with without_autocast(x.device):
            z, mixed, step = at_least_float32(z, F.silu(mixed), step)
            u, b, c = mixed.split([self.sizes[0], self.state, self.state], dim=-1)
            u, step = (
                split_heads(u, self.d_head),
                F.softplus(step + self.dt).transpose(1, 2),
            )  # (B, H, T, d_head), (B, H, T)
            log_decay = -self.log_a.exp()[:, None] * step
            # Attention by another name: C are queries, B keys and s u values, with one decay for each head.
            y, last = accumulate(c[:, None], b[:, None], u * step[..., None], log_decay, rows, state)
            y = merge_heads(y + self.skip[:, None, None] * u) * F.silu(z)
            # After the gate, as in the authors' code.
            y = rms(y, 1e-5) * self.norm
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, past)
        return self.project(rows.restored(y.to(x.dtype)))


@attentions.register("mingru", paper="arXiv:2410.01201")
class MinGRU(Mixer):
    """h_t = (1 - z_t) * h_{t-1} + z_t * g(h_proj x'_t), z = sigmoid(z_proj x'): a GRU whose gates ignore the state.

    g(x) = x + 1/2 for x >= 0, else sigmoid(x); h (B, T, expand * d_model).  x' is x after a short convolution; the
    recurrence alone has conv=1, a scale and an offset for each channel.  Takes no position.
    """

    def __init__(self, *, expand: Expand = 1, conv: Conv = 4, **wiring: Unpack[MixerWiring]) -> None:
        width, inner = wiring["d_model"], expand * wiring["d_model"]
        super().__init__(inner, **wiring)
        self.conv = ShortConv(width, conv, bias=True)
        self.z_proj, self.h_proj = (nn.Linear(width, inner, bias=wiring["bias"]) for _ in range(2))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state, past) = Rows.of(ctx), cached_state(ctx, self.layer, 2)
        inner, past = self.conv(rows.sorted(x), rows, past)
        gate, new = self.z_proj(inner.to(x.dtype)), self.h_proj(inner.to(x.dtype))
        with without_autocast(x.device):
            gate, new = at_least_float32(gate, new)
            # g keeps the state positive, as the paper's parallel scan in logarithms needs; here it is the same
            # function.
            new = torch.where(new >= 0, new + 0.5, new.sigmoid())
            h, last = scan((-gate).sigmoid(), gate.sigmoid() * new, rows, state)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, past)
        return self.project(rows.restored(h.to(x.dtype)))
