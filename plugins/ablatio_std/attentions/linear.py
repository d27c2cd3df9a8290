"""Attention by a kernel phi(q) . phi(k) in place of exp(q . k): sums over keys are made once, at a cost linear in T."""

import math
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import merge_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, QKNorm, SoftmaxAttention
from ablatio.model.context import Context
from ablatio_std.attentions._common import Rows, accumulate, at_least_float32, without_autocast


class KernelAttention(SoftmaxAttention):
    """y_t = sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s); a part says what phi is.

    Causal: by running sums in chunks.  Both ways: one sum; with borders or a prefix, pair by pair.  Positions turn q
    and k before phi.  The cache holds one sum, whatever the length.
    """

    takes_bias = False
    rotates_cached_keys = False
    least: float | None = None  # of the sum that is divided by, where features may be negative

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        """(B, H, T, d_head) -> (B, H, T, F)."""
        raise NotImplementedError

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q = self.queries(x)
        k, v = ctx.keys_values(self.layer, x, lambda x: self.keys_values(x, ctx))
        if ctx.memory is None:
            q, k = ctx.rotate(q, k, self.layer)
        with without_autocast(x.device):
            q, k, v = at_least_float32(q, k, v)
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # the last column sums up the weights
            q, k = self.feature(q, query=True), self.feature(k, query=False)
            gate = self.gate(x)
            if gate is None:
                sums = self.sums(q, k, v, q.new_zeros(1, 1, 1, 1), ctx)
            else:
                gate = gate.to(k.dtype)
                sums = self.sums(q, k * torch.sigmoid(-gate), v, F.logsigmoid(gate), ctx)
            y = sums[..., :-1] / (sums[..., -1:] if self.least is None else sums[..., -1:].clamp(min=self.least))
        return merge_heads(y).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor | None:
        """(B, T, D) -> (B, H, T, 1) or None: S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t, g = sigmoid of this."""
        return None

    def sums(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, ctx: Context) -> Tensor:
        """sum_s (q_t . k_s) v_s over what t sees: (B, H, T, V); causal ones forget by log_decay (B, H, T, 1)."""
        rows = Rows.of(ctx)
        cache = ctx.cache if ctx.memory is None else None
        if ctx.mask == "causal" and ctx.opened is None:
            state = None if cache is None else cache.state(self.layer)
            q, k, v = (rows.sorted(t) for t in (q, k, v))
            decay = (log_decay if log_decay.numel() == 1 else rows.sorted(log_decay))[..., 0]
            said, held = accumulate(q, k, v, decay, rows, None if state is None else state[0])
            said = rows.restored(said)
        elif ctx.visible is None:
            said = q @ (held := k.mT @ v)
        else:
            said = (q @ k.mT * ctx.visible) @ v
            last = 1.0 if ctx.segments is None else (ctx.segments == ctx.segments[:, -1:])[:, None, :, None]
            held = said if cache is None else (k * last).mT @ v
        if cache is not None:
            cache.keep(self.layer, held)
        return said


@attentions.register("linear", paper="arXiv:2006.16236")
class Linear(KernelAttention):
    """phi(x) = elu(x) + 1 in place of the exponential of q . k: attention with a state of d_head x d_head a head."""

    def __init__(self, *, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], qk_norm=qk_norm, **wiring)

    def feature(self, x: Tensor, *, query: bool) -> Tensor:
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())  # elu itself rounds to -1 below -17


@attentions.register("performer", paper="arXiv:2009.14794")
class Performer(KernelAttention):
    """exp(q . k) by random features phi_i(x) = exp(w_i . x - |x|^2 / 2) + eps, x with the root of the scale (FAVOR+).

    The w_i are normal; `orthogonal` makes those of a block of d_head orthogonal to each other, at the same lengths:
    less variance.  kernel=relu is the paper's generalised attention, phi_i(x) = relu(w_i . x) + eps.  The w_i are drawn
    at the start, saved with the weights and not trained.
    """

    directions: Tensor

    def __init__(
        self,
        *,
        features: Annotated[int | None, Range(1), "null: d_head ln d_head"] = None,
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
        x = x * math.sqrt(self.scale)
        along = x @ self.directions.to(x.dtype).T  # (B, H, T, F)
        if self.kernel == "relu":
            return along.relu() + self.eps
        exponent = along - x.square().sum(-1, keepdim=True) / 2
        if query:  # a factor on all features of a query goes away; one on keys would have to know later ones
            exponent = exponent - exponent.amax(-1, keepdim=True)
        return torch.exp(exponent) + self.eps


@attentions.register("rfa", paper="arXiv:2103.02143")
class RandomFeatures(KernelAttention):
    """exp(q . k / s^2) of unit q, k by phi(x) = (sin(w_1 . x), cos(w_1 . x), ...) / sqrt(m), w_i ~ N(0, 1 / s^2) (RFA).

    q and k are brought to length 1, and the m directions w_i are drawn at the start, saved with the weights and not
    trained; s, one for each of their numbers, is learned through them.  phi(q) . phi(k) may be negative, the sum that
    is divided by is at least `eps`.  The paper draws its directions anew in training.
    """

    directions: Tensor

    def __init__(
        self,
        *,
        features: Annotated[int, Range(1), "directions m; phi has two numbers for each"] = 64,
        eps: Annotated[float, Range(0, 1)] = 1e-4,
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
    """rfa with sums that forget: S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t, and so for the sum of phi (RFA-Gate).

    g = sigmoid(g_proj x), a number for each head and token.
    """

    cross = False
    bidirectional = False

    def __init__(
        self,
        *,
        features: Annotated[int, Range(1), "directions m; phi has two numbers for each"] = 64,
        eps: Annotated[float, Range(0, 1)] = 1e-4,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(features=features, eps=eps, **wiring)
        self.g_proj = nn.Linear(wiring["d_model"], wiring["n_heads"])

    def gate(self, x: Tensor) -> Tensor | None:
        return self.g_proj(x).transpose(1, 2)[..., None]  # type: ignore[no-any-return]


def orthogonal(count: int, width: int) -> Tensor:
    """(count, width) normal rows; in each block of `width` rows any two are orthogonal."""
    turned = [torch.linalg.qr(torch.randn(width, width)) for _ in range(-(-count // width))]
    # The factorisation picks signs by a rule of its own; those of R's diagonal make all turns equally likely.
    directions = torch.cat([(q * r.diagonal().sign()).T for q, r in turned])[:count]
    lengths: Tensor = torch.linalg.vector_norm(torch.randn(count, width), dim=1, keepdim=True)
    return directions * lengths
