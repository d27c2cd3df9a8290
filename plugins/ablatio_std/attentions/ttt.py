"""Test-time training: a linear model of each head is trained on the tokens as they are read; causal only."""

from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, attentions
from ablatio.model.attention.softmax_attention import AttentionWiring
from ablatio.model.context import Context
from ablatio.model.local_mixing import cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32
from ablatio_std.attentions._pieces import InnerTraining, Pieces

EPS = 1e-6


@attentions.register("ttt", paper="arXiv:2407.04620")
class TestTimeTraining(InnerTraining):
    """o_t = f(q_t; W_t), W_t = W_{t-1} - e_t grad_W |f(k_t; W_b) - v_t|^2 / 2, f(x; W) = x + layernorm(x W).

    TTT-Linear.  W_b is W before the mini-batch of t, `batch` consecutive tokens of a document, whose gradients are
    computed at once; e_t = rate sigmoid(e_proj x_t) / d_head in each head.  W is (d_head, d_head) with a bias; where it
    starts, and the gain and shift of the layer norm, are trained.  y = layernorm(o) over all heads.  The authors also
    have short convolutions before q and k, and a gate.  A rotary position rotates q and k.
    """

    roles = {"start": "vector", "bias": "vector", "gain": "vector", "shift": "vector"}  # noqa: RUF012

    def __init__(
        self,
        *,
        batch: Annotated[int, Range(1, 1024), "tokens in a mini-batch of the inner training"] = 16,
        rate: Annotated[float, Positive, "largest inner learning rate, times d_head"] = 1.0,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        heads, width = wiring["n_heads"], wiring["d_head"]
        super().__init__(heads, **wiring)
        self.batch, self.rate = batch, rate
        self.e_proj = nn.Linear(wiring["d_model"], heads)
        self.start = nn.Parameter(0.02 * torch.randn(heads, width, width))
        self.gain = nn.Parameter(torch.ones(heads, 1, width))
        self.bias, self.shift = (nn.Parameter(torch.zeros(heads, 1, width)) for _ in range(2))
        self.norm = nn.LayerNorm(heads * width)

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k = ctx.rotate(q, k, self.layer)
        rows, layout = self.pieces(x, ctx)
        with without_autocast(x.device):
            # Divided by d_head, as the loss is a sum over the head's features.
            rates = self.rate / self.d_head * self.e_proj(x).sigmoid().transpose(1, 2)[..., None]  # (B, H, T, 1)
            q, k, v, rates = (layout.cut(rows.sorted(t)) for t in at_least_float32(q, k, v, rates))
            outputs, state = self.trained(q, k, v, rates, self.initial(layout, ctx), layout)
            y = rows.restored(layout.restored(outputs))  # (B, T, H * d_head)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, *(t[layout.last] for t in state))
        return self.norm(y.to(x.dtype)).to(x.dtype)  # type: ignore[no-any-return]

    def initial(self, layout: Pieces, ctx: Context) -> tuple[Tensor, ...]:
        """W and bias before the first mini-batch of each piece, and the sums of its steps so far: (P, H, ...) each."""
        start, bias = (p.expand(layout.count, -1, -1, -1) for p in at_least_float32(self.start, self.bias))
        fresh = (start, bias, torch.zeros_like(start), torch.zeros_like(bias))
        cached = cached_state(ctx, self.layer, 4)
        if cached[0] is None:
            return fresh
        w, b, w_steps, b_steps = cached
        done = layout.complete[:, None, None, None]  # the last mini-batch was complete: its steps are taken
        w, b = torch.where(done, w - w_steps, w), torch.where(done, b - b_steps, b)
        held = (w, b, w_steps.masked_fill(done, 0), b_steps.masked_fill(done, 0))
        goes_on = layout.goes_on[:, None, None, None]
        return tuple(
            t.index_copy(0, layout.first, torch.where(goes_on, h, t[layout.first]))
            for t, h in zip(fresh, held, strict=True)
        )

    def trained(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, state: tuple[Tensor, ...], layout: Pieces
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Train on all mini-batches in order: q, k, v, rates (P, H, N, batch, F) -> outputs, and the last state."""
        (w, b, w_steps, b_steps), outputs = state, []
        for n in range(q.shape[2]):
            q_n, k_n = q[:, :, n], k[:, :, n]
            # The target is v - k: f(k) = k + layernorm(k W) is to give v.
            steps = rates[:, :, n] * self.gradient(k_n @ w + b, v[:, :, n] - k_n)  # (P, H, batch, d_head)
            # The dual form: what the steps up to t do to q_t, without W_t of each token. tril includes the token's own
            # step.
            z = q_n @ (w - w_steps) + b - b_steps - (q_n @ k_n.mT).tril() @ steps - steps.cumsum(-2)
            outputs.append(q_n + self.gain * _normalized(z)[0] + self.shift)
            w_steps, b_steps = w_steps + k_n.mT @ steps, b_steps + steps.sum(-2, keepdim=True)
            ends = (layout.last_batch <= n)[:, None, None, None]  # a piece that has ended keeps its unfinished batch
            w, b = torch.where(ends, w, w - w_steps), torch.where(ends, b, b - b_steps)
            w_steps, b_steps = w_steps * ends, b_steps * ends
        return torch.stack(outputs, dim=2), (w, b, w_steps, b_steps)

    def gradient(self, z: Tensor, target: Tensor) -> Tensor:
        """Gradient of |layernorm(z) - target|^2 / 2 by z: (..., d_head) -> same."""
        unit, deviation = _normalized(z)
        # By the rule for layer norm's backward pass: no graph is built inside the forward pass.
        g = self.gain * (self.gain * unit + self.shift - target)
        return (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True)) / deviation


def _normalized(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z - mean) / deviation, and the deviation, over the last axis."""
    centered = z - z.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + EPS).sqrt()
    return centered / deviation, deviation
