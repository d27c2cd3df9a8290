"""Linear attention: a kernel phi(q) . phi(k) in place of exp(q . k), so that the cost is linear in T."""

import math
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads
from ablatio.model.attention.softmax_attention import BY_HEADS, AttentionWiring, QKNorm, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32
from ablatio_std.attentions._recurrences import accumulate


class KernelAttention(SoftmaxAttention):
    """y_t = sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s); subclasses define phi in `feature`.

    Causal attention uses cumulative sums in chunks; bidirectional attention one sum, or all pairs where documents or a
    prefix restrict them.  Positions rotate q and k before phi.  The cache holds one sum whatever the text's length.
    """

    float32_products = True
    takes_bias = False
    rotates_cached_keys = False
    least: float | None = None  # lower bound of the denominator, for features that can be negative

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        """phi(x) of queries (query=True) or keys.  (B, H, T, d_head) -> (B, H, T, F)."""
        raise NotImplementedError

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q = self.queries(x)
        k, v = ctx.keys_values(self.layer, x, lambda x: self.keys_values(x, ctx))
        if ctx.memory is None:
            # Not for cross-attention, whose keys have other positions.
            q, k = ctx.rotate(q, k, self.layer)
        with without_autocast(x.device):
            q, k, v = at_least_float32(q, k, v)
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # the column of ones gives the denominator
            q, k = self.feature(q, query=True), self.feature(k, query=False)
            gate = self.gate(x)
            if gate is None:
                sums = self.sums(q, k, v, q.new_zeros(1, 1, 1, 1), ctx)
            else:
                gate = gate.to(k.dtype)
                # 1 - g = sigmoid(-gate) and log g = logsigmoid(gate), without cancellation for g near 1.
                sums = self.sums(q, k * torch.sigmoid(-gate), v, F.logsigmoid(gate), ctx)
            y = sums[..., :-1] / (sums[..., -1:] if self.least is None else sums[..., -1:].clamp(min=self.least))
        return merge_heads(y).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor | None:
        """Logits of g in S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t, or None for g = 1.  (B, T, D) -> (B, H, T, 1)."""
        return None

    def sums(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, ctx: Context) -> Tensor:
        """sum_s (q_t . k_s) v_s over the keys that t sees: (B, H, T, V).

        q and k are features (B, H, T, F), v is (B, H, T, V).  Causal sums decay by exp(log_decay), (B, H, T, 1).
        """
        rows = Rows.of(ctx)
        cache = ctx.cache if ctx.memory is None else None
        if ctx.mask == "causal" and ctx.opened is None:
            state = None if cache is None else cache.state(self.layer)
            q, k, v = (rows.sorted(t) for t in (q, k, v))
            decay = (log_decay if log_decay.numel() == 1 else rows.sorted(log_decay))[..., 0]
            sums, final = accumulate(q, k, v, decay, rows, None if state is None else state[0])
            sums = rows.restored(sums)
        elif ctx.visible is None:
            # All tokens see all: one sum, whose cost is linear in T.
            sums = q @ (final := k.mT @ v)
        else:
            sums = (q @ k.mT * ctx.visible) @ v
            # Decoding continues the last document, so the cached state sums over that one only.
            last = 1.0 if ctx.segments is None else (ctx.segments == ctx.segments[:, -1:])[:, None, :, None]
            final = sums if cache is None else (k * last).mT @ v
        if cache is not None:
            cache.keep(self.layer, final)
        return sums


@attentions.register("linear", paper="arXiv:2006.16236")
class Linear(KernelAttention):
    """y_t = sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s) with phi(x) = elu(x) + 1.

    In decoding each head keeps a state of d_head x d_head numbers and their normalizer, instead of keys and values.
    """

    column_parallel, row_parallel, replicated = BY_HEADS

    def __init__(self, *, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], qk_norm=qk_norm, **wiring)

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())  # F.elu(x) + 1 would round to 0 below x = -17


@attentions.register("performer", paper="arXiv:2009.14794")
class Performer(KernelAttention):
    """exp(scale q . k) by random features phi_i(x) = exp(w_i . x - |x|^2 / 2) + eps of x sqrt(scale) (FAVOR+).

    The w_i are normal.  draw=orthogonal makes those of each block of d_head orthogonal, with lengths of the same
    distribution, which lowers the variance.  kernel=relu is the paper's generalized attention, phi_i(x) = relu(w_i . x)
    + eps.  The w_i are drawn once, saved with the weights, and not trained.
    """

    queries_scale = False
    column_parallel, row_parallel, replicated = BY_HEADS
    directions: Tensor

    def __init__(
        self,
        *,
        features: Annotated[int | None, Range(1), "number of random features; null: d_head ln d_head"] = None,
        draw: Literal["orthogonal", "independent"] = "orthogonal",
        kernel: Literal["softmax", "relu"] = "softmax",
        eps: Annotated[float, Range(0, 1)] = 1e-4,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(wiring["n_heads"], **wiring)
        width = wiring["d_head"]
        count = features or max(1, round(width * math.log(width)))
        self.kernel, self.eps = kernel, eps
        drawn = orthogonal(count, width) if draw == "orthogonal" else torch.randn(count, width)
        self.register_buffer("directions", drawn)

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        # Half of the scale on q and half on k: their product has it whole.
        x = x * math.sqrt(self.scale)
        along = x @ self.directions.to(x.dtype).T  # (B, H, T, F)
        if self.kernel == "relu":
            return along.relu() + self.eps
        exponent = along - x.square().sum(-1, keepdim=True) / 2
        # A common factor of a query's features cancels in the quotient.  Keys would need one maximum over the text, and
        # so depend on later tokens.
        if query:
            exponent = exponent - exponent.amax(-1, keepdim=True)
        return torch.exp(exponent) + self.eps


@attentions.register("rfa", paper="arXiv:2103.02143")
class RandomFeatures(KernelAttention):
    """exp(q . k / s^2) of unit q, k by phi(x) = (sin(w_1 . x), cos(w_1 . x), ...) / sqrt(m), w_i ~ N(0, 1 / s^2) (RFA).

    q and k are normalized to length 1.  The m directions are drawn once, saved with the weights, and not trained; s,
    (d_head,), divides them and is learned.  As phi(q) . phi(k) can be negative, the denominator is clamped to at least
    `eps`.  The paper draws new directions during training.
    """

    column_parallel, row_parallel = BY_HEADS[:2]
    replicated = (*BY_HEADS[2], "sigma")
    directions: Tensor

    def __init__(
        self,
        *,
        features: Annotated[int, Range(1), "number m of directions; phi has two features for each"] = 64,
        eps: Annotated[float, Range(0, 1), "lower bound of the denominator"] = 1e-4,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(wiring["n_heads"], **wiring)
        self.least = eps
        self.register_buffer("directions", torch.randn(features, wiring["d_head"]))
        self.sigma = nn.Parameter(torch.ones(wiring["d_head"]))

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        along = F.normalize(x, dim=-1) @ (self.directions.to(x.dtype) / self.sigma.to(x.dtype)).T
        return torch.cat([along.sin(), along.cos()], dim=-1) / math.sqrt(len(self.directions))


@attentions.register("rfa_gate", paper="arXiv:2103.02143")
class GatedRandomFeatures(RandomFeatures):
    """rfa with decaying sums: S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t, and the same for the denominator (RFA-Gate).

    g = sigmoid(g_proj x), one scalar for each head and token.
    """

    cross = False
    bidirectional = False
    column_parallel = (*BY_HEADS[0], "g_proj")

    def __init__(
        self,
        *,
        features: Annotated[int, Range(1), "number m of directions; phi has two features for each"] = 64,
        eps: Annotated[float, Range(0, 1), "lower bound of the denominator"] = 1e-4,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(features=features, eps=eps, **wiring)
        self.g_proj = nn.Linear(wiring["d_model"], wiring["n_heads"])

    def gate(self, x: Tensor) -> Tensor | None:
        return self.g_proj(x).transpose(1, 2)[..., None]  # type: ignore[no-any-return]


def orthogonal(count: int, width: int) -> Tensor:
    """Draw normal rows, (count, width), orthogonal to each other within each block of `width` rows."""
    factors = [torch.linalg.qr(torch.randn(width, width)) for _ in range(-(-count // width))]
    # QR fixes the signs of Q by convention; the signs of R's diagonal make the distribution uniform (Haar).
    directions = torch.cat([(q * r.diagonal().sign()).T for q, r in factors])[:count]
    # Lengths of normal vectors, drawn anew: rows of Q have length 1, which would bias the estimate.
    lengths: Tensor = torch.linalg.vector_norm(torch.randn(count, width), dim=1, keepdim=True)
    return directions * lengths
