"""Recurrent attention by the delta rule: a write corrects the value that the state stores for its key; causal only."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, ShortConv, cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32, rms, step_sizes
from ablatio_std.attentions._recurrences import delta_rule

Conv = Annotated[int, Range(1), "width of the convolutions of q, k and v; 1: a scale for each channel"]


class DeltaRule(SoftmaxAttention):
    """Base: o_t = q_t S_t, S_t = (I - b_t k_t^T k_t) Diag(a_t) S_{t-1} + b_t k_t^T v_t; y = gate * rmsnorm_h(o).

    b = sigmoid(b_proj x) in each head, (B, T, H); q, k and v pass a short convolution and SiLU; q and k are normalized
    to length 1.  Subclasses make `norm`, (d_head,), and define `log_decay` and `gate`.
    """

    float32_products = True
    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False
    queries_scale = False
    norm: nn.Parameter

    def __init__(self, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], **wiring)

    def add_writes(self, conv: int, wiring: AttentionWiring) -> None:
        """Make b_proj and the convolutions, after the projections of a subclass and before its other parameters."""
        heads, width = wiring["n_heads"], wiring["d_head"]
        self.b_proj = nn.Linear(wiring["d_model"], heads, bias=False)
        self.q_conv, self.k_conv, self.v_conv = (ShortConv(heads * width, conv) for _ in range(3))

    def log_decay(self, x: Tensor) -> Tensor:
        """log a: (B, T, D) -> (B or 1, H or 1, T or 1) or (B, H, T, d_head)."""
        return x.new_zeros(1, 1, 1)

    def gate(self, x: Tensor) -> Tensor | None:
        """Factor on the normalized heads, (B, T, D) -> (B, T, H * d_head), or None for 1."""
        return None

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state, *pasts) = Rows.of(ctx), cached_state(ctx, self.layer, 4)  # S, and the convolutions' last inputs
        inner = rows.sorted(x)
        (q, q_past), (k, k_past), (v, v_past) = (
            conv(project(inner), rows, past)
            for project, conv, past in zip(
                (self.q_proj, self.k_proj, self.v_proj), (self.q_conv, self.k_conv, self.v_conv), pasts, strict=True
            )
        )
        q, k, v = (split_heads(F.silu(t), self.d_head) for t in (q, k, v))
        with without_autocast(x.device):
            log_decay = self.log_decay(inner)
            q, k, v, b = at_least_float32(q, k, v, self.b_proj(inner))
            # With |k| = 1 and b <= 1, I - b k^T k has no eigenvalue outside [0, 1]: the state cannot grow by itself.
            q, k = F.normalize(q, dim=-1) * self.scale, F.normalize(k, dim=-1)
            # Positions are in the order of the row, the recurrence in that of the documents.
            q, k = (rows.sorted(t) for t in ctx.rotate(rows.restored(q), rows.restored(k), self.layer))
            y, last = delta_rule(q, k, v, log_decay, b.sigmoid().transpose(1, 2), rows, state)
            y = rms(y) * self.norm
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, q_past, k_past, v_past)
        merged, gate = merge_heads(rows.restored(y)).to(x.dtype), self.gate(x)
        return merged if gate is None else gate * merged


@attentions.register("deltanet", paper="arXiv:2406.06484")
class DeltaNet(DeltaRule):
    """o_t = q_t S_t, S_t = S_{t-1} + b_t k_t^T (v_t - k_t S_{t-1}); y = rmsnorm_h(o).

    b = sigmoid(b_proj x) in each head, (B, T, H); q, k and v pass a short convolution and SiLU, q and k are normalized
    to length 1.  The paper uses position=none; a rotary position rotates q and k.
    """

    def __init__(self, *, conv: Conv = 4, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(**wiring)
        self.add_writes(conv, wiring)
        self.norm = nn.Parameter(torch.ones(wiring["d_head"]))


@attentions.register("gated_deltanet", paper="arXiv:2412.06464")
class GatedDeltaNet(DeltaRule):
    """o_t = S_t q_t, S_t = a_t S_{t-1} (1 - b_t k_t k_t^T) + b_t v_t k_t^T: writes correct the value stored for k_t.

    b = sigmoid(b_proj x) and log a = -A softplus(a_proj x + dt) in each head, (B, T, H); q, k and v pass a short
    convolution and SiLU, q and k are normalized to length 1; y = swish(g x) * rmsnorm_h(o).  A is initialized uniformly
    in [1, 16), dt so that softplus(dt) is in [0.001, 0.1], as in Mamba 2.  The paper uses position=none; a rotary
    position rotates q and k.
    """

    def __init__(self, *, conv: Conv = 4, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(**wiring)
        heads = wiring["n_heads"]
        self.g_proj = nn.Linear(wiring["d_model"], heads * wiring["d_head"], bias=wiring["bias"])
        self.a_proj = nn.Linear(wiring["d_model"], heads, bias=False)
        self.add_writes(conv, wiring)
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt = nn.Parameter(step_sizes(heads))
        self.norm = nn.Parameter(torch.ones(wiring["d_head"]))

    def log_decay(self, x: Tensor) -> Tensor:
        (a,) = at_least_float32(self.a_proj(x))
        # -A softplus(...) is negative, so that a stays in (0, 1); A is kept as a logarithm to stay positive.
        return (-self.log_a.exp() * F.softplus(a + self.dt)).transpose(1, 2)  # (B, H, T)

    def gate(self, x: Tensor) -> Tensor | None:
        return F.silu(self.g_proj(x))


@attentions.register("kda", paper="arXiv:2510.26692")
class KimiDelta(DeltaRule):
    """o_t = q_t S_t, S_t = (I - b_t k_t^T k_t) Diag(a_t) S_{t-1} + b_t k_t^T v_t: gated_deltanet, a decay per channel.

    log a = -A softplus(x F G + dt), (B, T, H * d_head), with A for each head, F (d_model, d_head), G (d_head, H *
    d_head); b = sigmoid(b_proj x), (B, T, H); q, k and v pass a short convolution and SiLU, q and k are normalized to
    length 1; y = sigmoid(x J K) * rmsnorm_h(o) with J and K shaped as F and G.  A and dt start as in gated_deltanet.
    The paper uses position=none; a rotary position rotates q and k.
    """

    def __init__(self, *, conv: Conv = 4, **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(**wiring)
        heads, width = wiring["n_heads"], wiring["d_head"]
        self.a_down, self.g_down = (nn.Linear(wiring["d_model"], width, bias=False) for _ in range(2))
        self.a_up, self.g_up = (nn.Linear(width, heads * width, bias=False) for _ in range(2))
        self.add_writes(conv, wiring)
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt = nn.Parameter(step_sizes(heads * width))
        self.norm = nn.Parameter(torch.ones(width))

    def log_decay(self, x: Tensor) -> Tensor:
        (a,) = at_least_float32(self.a_up(self.a_down(x)))
        return -self.log_a.exp()[:, None, None] * split_heads(F.softplus(a + self.dt), self.d_head)  # (B, H, T, d_head)

    def gate(self, x: Tensor) -> Tensor | None:
        return torch.sigmoid(self.g_up(self.g_down(x)))
