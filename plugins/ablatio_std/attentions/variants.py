"""Variants of softmax attention over all keys: gates, mixing of heads, differences, first-layer values, forgetting."""

import math
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import AttentionView, Reach, attend, attend_by_steps, merge_heads
from ablatio.model.attention.softmax_attention import BY_HEADS, AttentionWiring, KVHeads, QKNorm, SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.number_format import precise
from ablatio_std.attentions._refinements import Exclusive, KeyOffset, QueryGain, Refined, SSMax


@attentions.register("gated", paper="arXiv:2505.06708")
class Gated(Refined):
    """o(sigmoid(g_proj x) * heads(x)): the head outputs are gated by a projection of the query's token.

    per=element: one gate for each feature (the paper's G1); per=head: one for each head.  channels=12 with per=head is
    the sparse gate of modded-nanogpt (record of 2025-08-23), which reads 12 channels of x.
    """

    prefix = True
    column_parallel = (*Refined.column_parallel, "g_proj")

    def __init__(
        self,
        *,
        per: Literal["element", "head"] = "element",
        channels: Annotated[int | None, Range(1), "the gate reads the first channels of x; null: all"] = None,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        exclusive: Exclusive = "none",
        key_offset: KeyOffset = 0.0,
        query_gain: QueryGain = None,
        ssmax: SSMax = False,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(
            n_kv_heads or wiring["n_heads"], qk_norm=qk_norm,
            exclusive=exclusive, key_offset=key_offset, query_gain=query_gain, ssmax=ssmax, **wiring,
        )  # fmt: skip
        width = wiring["d_head"] if per == "element" else 1
        self.channels = channels or wiring["d_model"]
        self.g_proj = nn.Linear(self.channels, wiring["n_heads"] * width, bias=wiring["bias"])
        self.repeats = wiring["d_head"] // width

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        gate: Tensor = (
            self.g_proj(x[..., : self.channels]).sigmoid().repeat_interleave(self.repeats, dim=-1)
        )  # (B, T, H * d_head)
        return super().heads(x, ctx) * gate


rule(
    when="attention.name == 'gated' and attention.channels is not None and attention.channels > model.d_model",
    why="the gate reads attention.channels={attention.channels} of model.d_model={model.d_model} channels",
    fix="attention.channels={model.d_model}",
    where="attention",
)


@attentions.register("talking_heads", paper="arXiv:2003.02436")
class TalkingHeads(SoftmaxAttention):
    """mix'(softmax(mix(q k^T))) v: learned matrices (H, H) mix the logits and the weights across heads.

    Both are initialized to the identity.  Bias and mask are applied between the first mixing and the softmax.
    """

    prefix, takes_values, splits_tokens = True, True, True

    roles = {"logits": "vector", "weights": "vector"}  # noqa: RUF012  (an init must not replace the identity)

    def __init__(
        self,
        *,
        sides: Annotated[Literal["both", "logits", "weights"], "which of the two are mixed across heads"] = "both",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        heads = wiring["n_heads"]
        super().__init__(heads, **wiring)
        self.logits = nn.Parameter(torch.eye(heads)) if sides != "weights" else None
        self.weights = nn.Parameter(torch.eye(heads)) if sides != "logits" else None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView) -> Tensor:
        return attend_by_steps(
            q, k, v, ctx, scale=self.scale, dropout=self.dropout if self.training else 0.0,
            on_scores=lambda x: _mix_heads(x, self.logits), on_shares=lambda x: _mix_heads(x, self.weights),
        )  # fmt: skip


def _mix_heads(x: Tensor, mixing: Tensor | None) -> Tensor:
    """y_i = sum_h x_h mixing[h, i] over heads h; None: x.  (B, H, T, S) -> same."""
    return x if mixing is None else torch.einsum("bhts,hi->bits", x, mixing.to(x.dtype))


@attentions.register("differential", paper="arXiv:2410.05258")
class Differential(SoftmaxAttention):
    """(softmax(q1 k1^T) - l softmax(q2 k2^T)) [v1, v2]: cancels the noise common to two attention maps.

    Heads h and h + H/2 form a pair; each pair's output (2 d_head features) is divided by its root mean square and
    multiplied by 1 - l_start.  l = exp(lq1 . lk1) - exp(lq2 . lk2) + l_start, l_start = 0.8 - 0.6 exp(-0.3 layer).
    """

    takes_values, splits_tokens = True, True

    def __init__(self, *, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], qk_norm=qk_norm, **wiring)
        # layer counts from 0 here, from 1 in the paper.
        self.start = 0.8 - 0.6 * math.exp(-0.3 * wiring["layer"])
        vectors = (nn.Parameter(0.1 * torch.randn(wiring["d_head"])) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = vectors

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView) -> Tensor:
        # Both maps of a pair act on the same values of twice the width.
        wide = torch.cat(v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # (B, H, S, 2 d_head)
        dropout = self.dropout if self.training else 0.0
        heads = attend(q, k, wide, ctx, scale=self.scale, dropout=dropout)
        # Their difference in float32 or wider: the gradient of l is a small difference of large sums.
        signal, noise = heads.to(precise(heads.dtype)).chunk(2, dim=1)
        first = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1))
        second = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2))
        y = (signal - (first - second + self.start) * noise).to(v.dtype)  # (B, H / 2, T, 2 d_head)
        # 1 - l_start gives the gradient the size that it has in a transformer with softmax attention, as in the paper.
        return F.rms_norm(y, y.shape[-1:], eps=1e-5) * (1 - self.start)


rule(
    when="attention.name == 'differential' and model.n_heads % 2 == 1",
    why="differential pairs heads, so model.n_heads={model.n_heads} must be even",
    fix="model.n_heads={model.n_heads + 1 if model.d_model % (model.n_heads + 1) == 0 else 2}",
)


@attentions.register("value_residual", paper="arXiv:2410.17897")
class ValueResidual(SoftmaxAttention):
    """softmax(q k^T) (a v_n + b v_1) from the second layer on, v_1 the values of the first layer (ResFormer).

    a and b are initialized to `start`; kind=identity keeps them fixed.
    """

    takes_values, splits_tokens, splits_layers = True, True, False
    column_parallel, row_parallel = BY_HEADS[:2]
    replicated = (*BY_HEADS[2], "shares")

    def __init__(
        self,
        *,
        kind: Literal["learned", "identity"] = "learned",
        start: Annotated[float, Range(0, 1, open_low=True)] = 0.5,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.start = start
        learned = kind == "learned" and wiring["layer"] > 0
        self.shares = nn.Parameter(torch.full((2,), start)) if learned else None

    def keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        k, v = super().keys_values(x, ctx)
        # Kept by the first layer that asks, and handed to the others.
        first = ctx.passed_on("first values", lambda: v)
        if self.layer == 0:
            return k, v
        a, b = (self.start, self.start) if self.shares is None else self.shares.to(v.dtype)
        return k, a * v + b * first


rule(
    when="attention.name == 'value_residual' and attention.kind == 'learned' and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="all layers but the first have the learned parameters a and b, and model.distinct_layers="
    "{model.distinct_layers} of model.n_layers={model.n_layers} makes layers share their parameters",
    fix="attention.kind=identity",
    where="model.distinct_layers",
)


@attentions.register("forgetting", paper="arXiv:2503.02130")
class Forgetting(SoftmaxAttention):
    """softmax(q k^T + D) v, D[t, s] = sum of log f_l over l = s+1 ... t, f = sigmoid(f_proj x) in each head (FoX).

    The tokens after a key decide how much its weight decays.  The paper uses position=none.
    """

    cross = False
    bidirectional = False
    takes_values = True
    float32_products = True  # its decay is a bias on the logits
    column_parallel = (*BY_HEADS[0], "f_proj")
    row_parallel, replicated = BY_HEADS[1:]

    def __init__(
        self, *, n_kv_heads: KVHeads = None, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.f_proj = nn.Linear(wiring["d_model"], wiring["n_heads"])

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k, v = ctx.place(self.layer, q, k, v)
        # float32 at least: sums over a whole text of small numbers.
        log_f = F.logsigmoid(self.f_proj(x).to(torch.promote_types(x.dtype, torch.float32))).transpose(1, 2)
        if ctx.cache is not None:
            cached = ctx.cache.state(self.layer)
            log_f = log_f if cached is None else torch.cat([cached[0], log_f], dim=2)  # (B, H, S)
            ctx.cache.keep(self.layer, log_f)
        if ctx.segments is None or ctx.visible is None:
            # One document: differences of cumulative sums are exact enough, and need no (T, S) sums.
            total = log_f.cumsum(-1)
            decay = total[..., ctx.past :, None] - total[..., None, :]  # (B, H, T, S)
        else:  # sums over the keys that each query sees, so that other documents contribute exactly zero
            since = (log_f[:, :, None] * ctx.visible).flip(-1).cumsum(-1).flip(-1)  # sum of log f_l over l = s ... t
            decay = F.pad(since[..., 1:], (0, 1))
        decay = decay.to(precise(q.dtype))
        bias = decay if ctx.bias is None else decay + ctx.bias
        view = AttentionView(ctx.visible, bias, ctx.position, ctx.q_pos, ctx.k_pos, Reach.of(ctx))
        return merge_heads(self.mix(q, k, v, view))
