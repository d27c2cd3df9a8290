"""Softmax attention over all keys, with something added: gates, mixtures of heads, differences, earlier values."""

import math
from typing import Annotated, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import AttentionView, Reach, attend, attend_by_steps, merge_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads, QKNorm, SoftmaxAttention
from ablatio.model.context import Context


@attentions.register("gated", paper="arXiv:2505.06708")
class Gated(SoftmaxAttention):
    """o(sigmoid(g_proj x) * heads(x)): what each head says passes a gate of its own query's token.

    per=element: a gate for each number (the paper's G1); per=head: one for each head.
    """

    prefix = True

    def __init__(
        self,
        *,
        per: Literal["element", "head"] = "element",
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        width = wiring["d_head"] if per == "element" else 1
        self.g_proj = nn.Linear(wiring["d_model"], wiring["n_heads"] * width, bias=wiring["bias"])
        self.repeats = wiring["d_head"] // width

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        gate: Tensor = self.g_proj(x).sigmoid().repeat_interleave(self.repeats, dim=-1)  # (B, T, H * d_head)
        return super().heads(x, ctx) * gate


@attentions.register("talking_heads", paper="arXiv:2003.02436")
class TalkingHeads(SoftmaxAttention):
    """softmax(mix(q k^T)) mixed once more, times v: heads share logits and weights through two matrices (H, H).

    Both start as the identity.  Bias and mask come between the first mixture and the softmax.
    """

    prefix = True

    roles = {"logits": "vector", "weights": "vector"}  # noqa: RUF012  (an identity is no init's to draw)

    def __init__(
        self,
        *,
        sides: Annotated[Literal["both", "logits", "weights"], "which of the two are mixed"] = "both",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        heads = wiring["n_heads"]
        super().__init__(heads, **wiring)
        self.logits = nn.Parameter(torch.eye(heads)) if sides != "weights" else None
        self.weights = nn.Parameter(torch.eye(heads)) if sides != "logits" else None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView) -> Tensor:
        return attend_by_steps(
            q, k, v, ctx, scale=self.scale, dropout=self.dropout if self.training else 0.0,
            on_scores=lambda x: _talk(x, self.logits), on_shares=lambda x: _talk(x, self.weights),
        )  # fmt: skip


def _talk(x: Tensor, mixture: Tensor | None) -> Tensor:
    """(B, H, T, S) -> same: head i hears sum_h x_h mixture[h, i]."""
    return x if mixture is None else torch.einsum("bhts,hi->bits", x, mixture.to(x.dtype))


@attentions.register("differential", paper="arXiv:2410.05258")
class Differential(SoftmaxAttention):
    """(softmax(q1 k1^T) - l softmax(q2 k2^T)) [v1, v2]: what two maps share, noise above all, is taken away.

    Head h and head h + H/2 are a pair; each pair's output (2 d_head wide) is divided by its root mean square and
    multiplied with 1 - l_start.  l = exp(lq1 . lk1) - exp(lq2 . lk2) + l_start, l_start = 0.8 - 0.6 exp(-0.3 layer).
    """

    def __init__(self, *, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.start = 0.8 - 0.6 * math.exp(-0.3 * wiring["layer"])
        drawn = (nn.Parameter(0.1 * torch.randn(wiring["d_head"])) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = drawn

    def mix(self, q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView) -> Tensor:
        wide = torch.cat(v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # (B, H, S, 2 d_head)
        dropout = self.dropout if self.training else 0.0
        signal, noise = attend(q, k, wide, ctx, scale=self.scale, dropout=dropout).chunk(2, dim=1)
        first = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1))
        second = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2))
        y = (signal - (first - second + self.start) * noise).to(v.dtype)  # (B, H / 2, T, 2 d_head)
        return F.rms_norm(y, y.shape[-1:], eps=1e-5) * (1 - self.start)


rule(
    when="attention.name == 'differential' and model.n_heads % 2 == 1",
    why="differential takes the difference of two heads, so model.n_heads={model.n_heads} must be even",
    fix="model.n_heads={model.n_heads + 1 if model.d_model % (model.n_heads + 1) == 0 else 2}",
)


@attentions.register("value_residual", paper="arXiv:2410.17897")
class ValueResidual(SoftmaxAttention):
    """From the second layer on, values are a v_n + b v_1: those of the first layer reach every layer (ResFormer).

    a and b start at `start`; kind=identity leaves them there.
    """

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
        first = ctx.shared("first values", lambda: v)
        if self.layer == 0:
            return k, v
        own, old = (self.start, self.start) if self.shares is None else self.shares.to(v.dtype)
        return k, own * v + old * first


rule(
    when="attention.name == 'value_residual' and attention.kind == 'learned' and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="from the second layer on there are shares to learn and the first layer has none, and model.distinct_layers="
    "{model.distinct_layers} of model.n_layers={model.n_layers} makes them share their weights",
    fix="attention.kind=identity",
    where="model.distinct_layers",
)


@attentions.register("forgetting", paper="arXiv:2503.02130")
class Forgetting(SoftmaxAttention):
    """softmax(q k^T + D) v, D[t, s] = sum of log f_l over l = s+1 ... t, f = sigmoid(f_proj x) in each head (FoX).

    Old keys fade as much as the tokens since then say; the paper has position=none.
    """

    cross = False
    bidirectional = False

    def __init__(
        self, *, n_kv_heads: KVHeads = None, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.f_proj = nn.Linear(wiring["d_model"], wiring["n_heads"])

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k, v = ctx.place(self.layer, q, k, v)
        kept = F.logsigmoid(self.f_proj(x).to(torch.promote_types(x.dtype, torch.float32))).transpose(1, 2)  # (B, H, T)
        if ctx.cache is not None:
            old = ctx.cache.state(self.layer)
            kept = kept if old is None else torch.cat([old[0], kept], dim=2)
            ctx.cache.keep(self.layer, kept)
        if ctx.segments is None or ctx.visible is None:
            total = kept.cumsum(-1)
            decay = total[..., ctx.past :, None] - total[..., None, :]  # (B, H, T, S)
        else:  # summed up for each query by itself, over what it sees: other documents add exactly nothing
            since = (kept[:, :, None] * ctx.visible).flip(-1).cumsum(-1).flip(-1)  # from s on
            decay = F.pad(since[..., 1:], (0, 1))
        decay = decay.to(q.dtype)
        bias = decay if ctx.bias is None else decay + ctx.bias
        sight = AttentionView(ctx.visible, bias, ctx.position, ctx.q_pos, ctx.k_pos, Reach.of(ctx))
        return merge_heads(self.mix(q, k, v, sight))
