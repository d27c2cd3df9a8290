"""Test-time training: a linear model of each head is trained on the tokens as they are read; causal only."""

from typing import Annotated, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, attentions
from ablatio.model.attention.softmax_attention import AttentionWiring, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.local_mixing import Rows, cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32

EPS = 1e-6


@attentions.register("ttt", paper="arXiv:2407.04620")
class TestTimeTraining(SoftmaxAttention):
    """o_t = f(q_t; W_t), W_t = W_{t-1} - e_t grad_W |f(k_t; W_b) - v_t|^2 / 2, f(x; W) = x + layernorm(x W).

    TTT-Linear.  W_b is W before the mini-batch of t, `batch` consecutive tokens of a document, whose gradients are
    computed at once; e_t = rate sigmoid(e_proj x_t) / d_head in each head.  W is (d_head, d_head) with a bias; where it
    starts, and the gain and shift of the layer norm, are trained.  y = layernorm(o) over all heads.  The authors also
    have short convolutions before q and k, and a gate.  A rotary position rotates q and k.
    """

    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False
    queries_scale = False
    float32_products = True
    waits = "how many mini-batches a row has depends on the lengths of its documents"
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
        rows, layout = (
            Rows.of(ctx),
            ctx.shared(("pieces", self.batch, len(x)), lambda: _Pieces.of(ctx, len(x), self.batch)),
        )
        with without_autocast(x.device):
            # Divided by d_head, as the loss is a sum over the head's features.
            rates = self.rate / self.d_head * self.e_proj(x).sigmoid().transpose(1, 2)[..., None]  # (B, H, T, 1)
            q, k, v, rates = (layout.cut(rows.sorted(t)) for t in at_least_float32(q, k, v, rates))
            outputs, state = self.trained(q, k, v, rates, self.initial(layout, ctx), layout)
            y = rows.restored(layout.restored(outputs))  # (B, T, H * d_head)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, *(t[layout.last] for t in state))
        return self.norm(y.to(x.dtype)).to(x.dtype)  # type: ignore[no-any-return]

    def initial(self, layout: "_Pieces", ctx: Context) -> tuple[Tensor, ...]:
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
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, state: tuple[Tensor, ...], layout: "_Pieces"
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


class _Pieces(NamedTuple):
    """The P documents, or parts of one, in a pass, each padded to N mini-batches that begin where its own ones do.

    size                the tokens of a padded piece, N * batch
    place       (B, T)  place of each sorted token among the P * N * batch padded ones
    first, last (B,)    number of a row's first and last piece
    last_batch  (P,)    mini-batch in which a piece ends
    goes_on     (B,)    True if a row's first piece continues the cached text
    complete    (B,)    True if it begins with a mini-batch
    """

    count: int
    size: int
    batch: int
    place: Tensor
    first: Tensor
    last: Tensor
    last_batch: Tensor
    goes_on: Tensor
    complete: Tensor

    @classmethod
    def of(cls, ctx: Context, n_rows: int, batch: int) -> "_Pieces":
        """The pieces of a pass over `n_rows` rows."""
        rows, length, device = Rows.of(ctx), ctx.length, ctx.q_pos.device
        index = torch.arange(length, device=device).expand(n_rows, -1)
        pos = ctx.q_pos.expand(n_rows, -1)
        pos = pos if rows.order is None else pos.gather(1, rows.order)
        starts = rows.starts(length, device).expand(n_rows, -1)
        begin = index.masked_fill(~starts, 0).cummax(1).values  # of the piece that a token is in
        # A continued text goes on inside its mini-batch: mini-batches begin at multiples of `batch` in the text,
        # whatever the passes.
        phase = pos.gather(1, begin) % batch
        within = index - begin + phase
        if rows.documents is None or is_meta_tensor(index):  # one piece for each row
            last = torch.arange(n_rows, device=device)
            number, first, count, size = last[:, None], last, n_rows, length + ctx.past % batch
        else:
            own = starts.cumsum(1) - starts[:, :1].long()
            last = (own[:, -1] + 1).cumsum(0) - 1
            first = last - own[:, -1]
            number, count, size = first[:, None] + own, int(last[-1]) + 1, int(within.max()) + 1
        size = -(-size // batch) * batch
        ends = within.new_zeros(count).scatter_reduce(0, number.expand_as(within).flatten(), within.flatten(), "amax")
        place = number * size + within
        return cls(count, size, batch, place, first, last, ends // batch, ~starts[:, 0], phase[:, 0] == 0)

    def cut(self, x: Tensor) -> Tensor:
        """Arrange sorted tokens by piece and mini-batch: (B, H, T, F) -> (P, H, N, batch, F), padded with zeros."""
        flat = x.transpose(1, 2).flatten(0, 1)  # (B * T, H, F)
        padded = x.new_zeros(self.count * self.size, *flat.shape[1:]).index_copy(0, self.place.flatten(), flat)
        return padded.unflatten(0, (self.count, -1, self.batch)).permute(0, 3, 1, 2, 4)

    def restored(self, x: Tensor) -> Tensor:
        """Undo `cut`, with the heads side by side: (P, H, N, batch, F) -> (B, T, H * F)."""
        return x.permute(0, 2, 3, 1, 4).reshape(self.count * self.size, -1)[self.place]
