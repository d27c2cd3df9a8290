"""RWKV-7's time mixing: a delta rule whose keys of reading and writing differ, with vector-valued rates and decays."""

import math
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, cached_state, previous
from ablatio.model.number_format import without_autocast
from ablatio_std.attentions._common import at_least_float32
from ablatio_std.attentions._recurrences import generalized_delta_rule

MIXED = {"r": 0.2, "d": 0.9, "k": 0.7, "v": 0.7, "e": 0.9, "g": 0.2}  # exponents of the initial mixtures


class LowRank(nn.Module):
    """c + f(x A) B: A (d_in, rank), B (rank, d_out), c (d_out,) or none.  (..., d_in) -> (..., d_out)."""

    def __init__(self, d_in: int, rank: int, offset: Tensor | int, inner: Literal["tanh", "sigmoid"] | None) -> None:
        super().__init__()
        width = offset if isinstance(offset, int) else len(offset)
        self.down, self.up = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.offset = None if isinstance(offset, int) else nn.Parameter(offset)
        self.inner = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, None: nn.Identity()}[inner]

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.inner(self.down(x)))
        return x if self.offset is None else x + self.offset.to(x.dtype)


@attentions.register("rwkv7", paper="arXiv:2503.14456")
class RWKV7(SoftmaxAttention):
    """o_t = r_t S_t, S_t = Diag(w_t) S_{t-1} - (e_t * c_t)^T c_t S_{t-1} + k_t^T v_t: keys c are erased at rates e.

    r, k', v', w, e and the gate g each read their own mixture x_t + m * (x_{t-1} - x_t).  In each head, with learned
    vectors p, q, u: w = exp(-exp(-1/2) sigmoid(d)); c = q * k' of length 1; k = k' * (1 + (e - 1) * p); v = v' + n *
    (v_1 - v'), v_1 that v' of the first layer (values=own: v = v'); y = g * (layernorm_h(o) + (r . (u * k)) v).  d =
    tanh(x A) B + c and the gates e, n = sigmoid(x A B + c), g = sigmoid(x A) B are of low rank.

    Takes no position.  The paper's channel mixing is left to the kind `mlp`.
    """

    float32_products = True
    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False
    queries_scale = False
    splits_layers = False

    def __init__(
        self,
        n_layers: int,
        *,
        values: Annotated[Literal["first", "own"], "mix the values with those of the first layer, or not"] = "first",
        rank: Annotated[
            int | None, Range(1), "rank of the gates; null: 2.5 sqrt(d_model), 1.7 of n and 5 of g, in steps of 32"
        ] = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(wiring["n_heads"], **wiring)
        d_model, width, layer = wiring["d_model"], wiring["n_heads"] * wiring["d_head"], wiring["layer"]

        def ranked(factor: float) -> int:
            return rank or max(32, 32 * round(factor * math.sqrt(d_model) / 32))

        index, ramp = torch.arange(d_model) / d_model, torch.linspace(-0.5, 0.5, width)
        # Initial values of this class are those of the authors' code.
        self.mixtures = nn.ParameterDict({n: 1 - index ** (e * (1 - layer / n_layers)) for n, e in MIXED.items()})
        wave = torch.linspace(-1, 1, wiring["d_head"]).repeat(wiring["n_heads"])
        wave = wave * wave.abs()
        slow = 6 * torch.linspace(0, 1, width) ** (1 + (layer / max(1, n_layers - 1)) ** 0.3) - 5.5
        self.decay = LowRank(d_model, ranked(2.5), slow + 2.5 * wave, "tanh")
        self.rate = LowRank(d_model, ranked(2.5), 0.3 * wave + 0.4 * ramp - 0.19, None)
        self.out_gate = LowRank(d_model, ranked(5), width, "sigmoid")
        mixes = values == "first" and layer > 0
        self.value_gate = LowRank(d_model, ranked(1.7), 0.73 - 0.4 * ramp, None) if mixes else None
        self.erased, self.adapted = nn.Parameter(0.71 - 0.1 * ramp), nn.Parameter(torch.full((width,), 1.02))
        self.bonus = nn.Parameter(torch.full((width,), -0.04))
        self.norm_weight = nn.Parameter(torch.full((width,), ((layer + 1) / n_layers) ** 0.7))
        self.norm_bias = nn.Parameter(torch.zeros(width))

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        rows, (state, past) = Rows.of(ctx), cached_state(ctx, self.layer, 2)
        inner = rows.sorted(x)
        before, past = previous(inner, rows, past)
        r, d, k, v, e, g = (torch.lerp(inner, before, self.mixtures[name].to(x.dtype)) for name in MIXED)
        own, rate, gate = self.v_proj(v), self.rate(e).sigmoid(), self.out_gate(g)
        first = ctx.passed_on("rwkv7 values", lambda: own)
        v = own if self.value_gate is None else own + self.value_gate(v).sigmoid() * (first - own)
        r, k, d = self.q_proj(r), self.k_proj(k), self.decay(d)
        with without_autocast(x.device):
            r, k, v, d, rate = at_least_float32(r, k, v, d, rate)
            erased, k = k * self.erased, k * (1 + (rate - 1) * self.adapted)
            bonus, log_w = r * self.bonus * k, -math.exp(-0.5) * d.sigmoid()
            r, k, v, erased, rate, bonus, log_w = (
                split_heads(t, self.d_head) for t in (r, k, v, erased, rate, bonus, log_w)
            )
            erased = F.normalize(erased, dim=-1)
            # They read S_{t-1} before it decays: w_t is at least exp(-exp(-1/2)) = 0.55, so dividing by it is safe.
            read = -erased * torch.exp(-log_w)
            y, last = generalized_delta_rule(r, k, v, read, rate * erased, log_w, rows, state)
            # eps grows with the width of a head, as in the authors' code (64e-5 at width 64).
            y = F.layer_norm(y, (self.d_head,), eps=self.d_head * 1e-5)
            y = merge_heads(y) * self.norm_weight + self.norm_bias + merge_heads(bonus.sum(-1, keepdim=True) * v)
        if ctx.cache is not None:
            ctx.cache.keep(self.layer, last, past)
        return rows.restored(gate * y.to(x.dtype))


rule(
    when="attention.name == 'rwkv7' and attention.values == 'first' and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="all layers but the first mix their values with the first layer's by a gate, and model.distinct_layers="
    "{model.distinct_layers} of model.n_layers={model.n_layers} makes layers share their parameters",
    fix="attention.values=own",
    where="model.distinct_layers",
)
