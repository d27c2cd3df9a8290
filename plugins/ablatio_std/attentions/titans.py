"""Titans' neural memory: a matrix of each head is trained with momentum and forgetting as the tokens are read."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, Range, attentions
from ablatio.model.attention.softmax_attention import AttentionWiring
from ablatio.model.context import Context
from ablatio.model.local_mixing import cached_state
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32
from ablatio_std.attentions._pieces import InnerTraining, Pieces

FORGETTING = -4.0  # initial logit of a: a token takes 2 % of the memory


@attentions.register("titans", paper="arXiv:2501.00663")
class Titans(InnerTraining):
    """o_t = q_t M_t,  M_t = (1 - a_t) M_{t-1} + S_t,  S_t = h_t S_{t-1} - e_t k_t^T (k_t M_b - v_t), S the surprise.

    k_t^T (k_t M_b - v_t) is the gradient of |k_t M_b - v_t|^2 / 2, and M_b is M before the mini-batch of t, `batch`
    consecutive tokens of a document, as in the paper's section 3.2; with batch=1 it is M_{t-1}.  Forgetting a, momentum
    h and step e are sigmoids of projections of x_t in each head, e times `rate`; q and k have length 1.  M starts at 0
    and S at 0; y = rmsnorm(o) in each head.  A memory of one matrix (the paper's L_M = 1), as a layer in place of
    attention (LMM); beside attention it stands in `layers.attention`.  The authors also have short convolutions on q, k
    and v, and a gate.  A rotary position rotates q and k.
    """

    roles = {"forgetting": "vector", "gain": "vector"}  # noqa: RUF012

    def __init__(
        self,
        *,
        batch: Annotated[int, Range(1, 1024), "tokens in a mini-batch of the inner training"] = 16,
        rate: Annotated[float, Positive, "largest inner learning rate"] = 1.0,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        heads, width = wiring["n_heads"], wiring["d_head"]
        super().__init__(heads, **wiring)
        self.batch, self.rate, self.n_heads = batch, rate, heads
        self.gates = nn.Linear(wiring["d_model"], 3 * heads, bias=False)
        self.forgetting = nn.Parameter(torch.full((heads, 1, 1), FORGETTING))
        self.gain = nn.Parameter(torch.ones(heads, 1, width))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k = ctx.rotate(q, k, self.layer)
        rows, layout = self.pieces(x, ctx)
        with without_autocast(x.device):
            q, k, v, gates = at_least_float32(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, self.gates(x))
            gates = gates.unflatten(-1, (3, self.n_heads)).movedim(-1, 1)  # (B, H, T, 3)
            forget, momentum, step = gates.split(1, dim=-1)
            # Logarithms: a padded place, which `cut` fills with zeros, then keeps the memory as it is.
            keeps, holds = F.logsigmoid(-(forget + self.forgetting)), F.logsigmoid(momentum)
            parts = (q, k, v, keeps, holds, self.rate * step.sigmoid(), torch.ones_like(step))
            cut = [layout.cut(rows.sorted(t)) for t in at_least_float32(*parts)]
            outputs, state = self.trained(cut, self.initial(layout, ctx, cut[0]), layout)
            o = outputs * torch.rsqrt(outputs.square().mean(-1, keepdim=True) + 1e-6) * self.gain[:, None]
            y = rows.restored(layout.restored(o))  # (B, T, H * d_head)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, *(t[layout.last] for t in state))
        return y.to(x.dtype)

    def initial(self, layout: Pieces, ctx: Context, like: Tensor) -> tuple[Tensor, ...]:
        """M before the last mini-batch, M and S at the beginning of each piece: (P, H, d_head, d_head) each."""
        fresh = like.new_zeros(layout.count, self.n_heads, self.d_head, self.d_head)
        cached = cached_state(ctx, self.layer, 3)
        if cached[0] is None:
            return fresh, fresh, fresh
        before, memory, surprise = cached
        # The last mini-batch was complete: the gradients of the next are those at the memory after it.
        before = torch.where(layout.complete[:, None, None, None], memory, before)
        goes_on = layout.goes_on[:, None, None, None]
        return tuple(
            fresh.index_copy(0, layout.first, torch.where(goes_on, held, fresh[layout.first]))
            for held in (before, memory, surprise)
        )

    def trained(
        self, cut: list[Tensor], state: tuple[Tensor, ...], layout: Pieces
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Train on all mini-batches in order: tensors (P, H, N, batch, ...) -> outputs, and the last state."""
        (before, memory, surprise), outputs = state, []
        for n in range(cut[0].shape[2]):
            q, k, v, keeps, holds, rate, real = (t[:, :, n] for t in cut)  # (P, H, batch, ...)
            kept, held = keeps.cumsum(-2), holds.cumsum(-2)  # logarithms of products up to and with a token
            # What is left at token t of what token s added to M, and to S: lower triangles (batch, batch).
            of_memory, of_surprise = _since(kept), _since(held)
            # S is added to M at each real token: at t, M has what S had at each token up to t.
            carried = of_memory * real.mT @ of_surprise  # of the step at s, in M at t
            first = (of_memory * real.mT) @ held.exp()  # of S before the mini-batch, in M at t
            steps = -rate * (k @ before - v)  # (P, H, batch, d_head)
            outputs.append(kept.exp() * (q @ memory) + first * (q @ surprise) + (q @ k.mT * carried) @ steps)
            last = slice(-1, None)
            left = (carried[..., last, :].mT * k).mT @ steps
            left_of_surprise = (of_surprise[..., last, :].mT * k).mT @ steps
            memory = kept[..., last, :].exp() * memory + first[..., last, :] * surprise + left
            surprise = held[..., last, :].exp() * surprise + left_of_surprise
            ends = (layout.last_batch <= n)[:, None, None, None]  # a piece that has ended keeps its unfinished batch
            before = torch.where(ends, before, memory)
        return torch.stack(outputs, dim=2), (before, memory, surprise)


def _since(sums: Tensor) -> Tensor:
    """exp(sums_t - sums_s) for s <= t, else 0: (..., n, 1) -> (..., n, n)."""
    below = torch.ones(sums.shape[-2], sums.shape[-2], dtype=torch.bool, device=sums.device).tril()
    # Masked before exp, which would overflow above the diagonal.
    return (sums - sums.mT).masked_fill(~below, float("-inf")).exp()
