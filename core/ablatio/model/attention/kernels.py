"""Softmax attention, computed by the fastest kernel that gives the exact result."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model import flex_attention as flex
from ablatio.model.attention.blocked import blocked_attention
from ablatio.model.context import Context
from ablatio.model.number_format import autocasts, precise, without_autocast

LEAST = 512  # tokens from which blockwise attention beats a dense mask: 1.2 to 1.8x; at 256 it can be 0.8x
LEAST_TRAINED = 128  # the same with a trained bias, whose gradient costs the fused kernel a sum over the batch: 1.1x

Kernel = Literal["fused", "blocks", "flex", "masked", "steps"]


class Reach(NamedTuple):
    """A causal mask as bounds per query: first key of its document (B, T), and maximum number of keys (window)."""

    first: Tensor | None
    window: int | None

    @classmethod
    def of(cls, ctx: Context, window: int | None = None) -> "Reach | None":
        """Return the bounds of `ctx`, or None if they do not describe its mask or blockwise attention is no gain.

        It is no gain on a GPU, in compiled code, without gradients, and in short texts.
        """
        plain = ctx.mask == "causal" and ctx.begins and ctx.opened is None and ctx.memory is None
        least = LEAST_TRAINED if ctx.bias is not None and ctx.bias.requires_grad else LEAST
        if not plain or ctx.q_pos.device.type != "cpu" or ctx.length < least or torch.compiler.is_compiling():
            return None
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        if ctx.segments is None:
            return cls(None, window)
        first = ctx.shared("document starts", lambda: _starts(ctx))
        return None if first is None else cls(first, window)


def _starts(ctx: Context) -> Tensor | None:
    """Start of each token's document: (B, T); None if a document is not contiguous."""
    segments, place = ctx.segments, torch.arange(ctx.length)
    assert segments is not None
    # A document starts where the segment changes; only there may the position be 0, or it lies in several pieces.
    border = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    first = place - ctx.q_pos
    return first if torch.equal(border, first == place) else None


@dataclass(frozen=True)
class AttentionView:
    """Mask, bias and positions of one layer, if it restricts what the context shows to all layers.

    visible  (T, S) or (B, 1, T, S), True where a query may attend; None: every key is visible
    bias     (H, T, S) or (B, H, T, S), added to the logits
    q_pos, k_pos  (T,), (S,) or (B, T), (B, S): positions of queries and keys, for the position's `score`
    reach    the same mask as `visible` in the form of bounds, if it has that form
    paired   True if position and mask are the context's, but for pairs that it hides: FlexAttention may compute it
    """

    visible: Tensor | None
    bias: Tensor | None
    position: Any
    q_pos: Tensor
    k_pos: Tensor
    reach: Reach | None = None
    paired: bool = False
    is_causal = False

    @classmethod
    def of(cls, ctx: Context, allowed: Tensor, window: int | None = None) -> "AttentionView":
        """Restrict `ctx` to the keys in `allowed` (T, S) or (B, T, S); window: the same restriction as a length."""
        visible = ctx.visible
        allowed = allowed[:, None] if allowed.dim() == 3 else allowed
        visible = allowed if visible is None else visible & allowed
        reach = None if window is None else Reach.of(ctx, window)
        return cls(visible, ctx.bias, ctx.position, ctx.q_pos, ctx.k_pos, reach, paired=ctx.cache is None)

    def take(self, index: Tensor) -> "AttentionView":
        """Restrict the view to the keys `index` (B, S')."""
        batch, kept = index.shape

        def picked(x: Tensor | None) -> Tensor | None:  # (..., T, S) -> (B, H or 1, T, S')
            if x is None:
                return None
            x = x[(None,) * (4 - x.dim())]
            return x.expand(batch, -1, -1, -1).gather(-1, index[:, None, None].expand(-1, *x.shape[1:3], kept))

        q_pos, k_pos = (p.expand(batch, -1) for p in (self.q_pos, self.k_pos))
        return AttentionView(picked(self.visible), picked(self.bias), self.position, q_pos, k_pos.gather(-1, index))

    @cached_property
    def additive(self) -> Tensor | None:
        """Bias and mask as one tensor that is added to the logits."""
        if self.visible is None or self.bias is None:
            return self.bias
        return self.bias.masked_fill(~self.visible, float("-inf"))

    @cached_property
    def block_mask(self) -> Any:
        """The mask as FlexAttention takes it; None: every key is visible."""
        return None if self.visible is None else flex.block_mask(self.visible)


def kernel_for(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx: Context | AttentionView,
    *,
    dropout: float = 0.0,
    bounded: bool = False,
    composed: bool = False,
) -> Kernel:
    """Choose the kernel of a softmax attention: the fastest one that computes the combination; nothing else chooses.

    bounded   the scores have a softcap, or the softmax has sinks
    composed  scores or probabilities go through a function, such as one that mixes heads

    | kernel | masks                     | bias            | score | bounded | composed | dropout | where          |
    |--------|---------------------------|-----------------|-------|---------|----------|---------|----------------|
    | fused  | causal, one document      | no              | no    | no      | no       | yes     | everywhere     |
    | blocks | causal, documents, window | yes             | no    | no      | no       | no      | CPU, training  |
    | flex   | all that heads share      | without weights | no    | yes     | no       | no      | GPU, long rows |
    | masked | all                       | yes             | yes   | no      | no       | yes     | everywhere     |
    | steps  | all                       | yes             | yes   | yes     | yes      | yes     | everywhere     |

    `flex` leaves a bias with weights to `masked`: its gradient would be added up in an order that changes from run to
    run.  It computes no text from a cache, whose lengths change: each length is another kernel.
    """
    has_score = hasattr(ctx.position, "score")
    if ctx.is_causal and not has_score and not bounded and not composed:
        return "fused"
    if not (dropout or has_score or composed) and flex.serves(q, k, v) and _pairs_known(ctx, bounded):
        return "flex"
    if bounded or composed:
        return "steps"
    return "blocks" if not has_score and not dropout and _reach(ctx) is not None else "masked"


def _pairs_known(ctx: Context | AttentionView, bounded: bool) -> bool:
    """True if FlexAttention can compute mask and bias, and has something to gain from them."""
    visible, paired = ctx.visible, ctx.cache is None if isinstance(ctx, Context) else ctx.paired
    by_head = visible is not None and visible.dim() == 4 and visible.shape[1] > 1
    has_bias = hasattr(ctx.position, "bias")
    trained = has_bias and isinstance(ctx.position, nn.Module) and any(True for _ in ctx.position.parameters())
    return paired and not by_head and not trained and (bounded or has_bias or visible is not None)


def attend(
    q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute softmax(q k^T * scale + bias) v over the keys that are visible to each query.

    q (B, H, T, d_head); k, v (B, H_kv, S, d_head) with H a multiple of H_kv -> (B, H, T, d_head); v may have another
    width, which is then the output's.  scale: default 1 / sqrt(d_head).  dropout: of the attention probabilities.
    `kernel_for` says which kernel runs.  With a bias or a score the attention is computed in float32 under autocast
    too, because fused kernels round both to the dtype of the queries; FlexAttention does not.
    """
    kernel = kernel_for(q, k, v, ctx, dropout=dropout)
    if kernel == "flex":
        return _by_flex(q, k, v, ctx, scale=scale)
    if _needs_float32(q, ctx):
        wide = precise(q.dtype)
        with without_autocast(q.device):
            exact = attend(q.to(wide), k.to(wide), v.to(wide), ctx, scale=scale, dropout=dropout)
        return exact.to(v.dtype)
    k, v, width = repeated(k, q.shape[1]), repeated(v, q.shape[1]), v.shape[-1]
    score = _with_score(q, k, ctx) if hasattr(ctx.position, "score") else None
    if width != q.shape[-1]:  # padded to one width for the fused kernel: 0.75x the unfused time at length 1024
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q, k, v = (F.pad(x, (0, max(width, q.shape[-1]) - x.shape[-1])) for x in (q, k, v))
    if kernel == "fused":
        causal = q.shape[2] > 1
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout, scale=scale)
    elif kernel == "blocks" and (reach := _reach(ctx)) is not None:
        y = blocked_attention(q, k, v, ctx.bias, first=reach.first, window=reach.window, scale=scale)
    else:
        mask = score if score is not None else ctx.additive if ctx.bias is not None else ctx.visible
        if mask is not None and mask.dim() == 3:  # (H, T, S): the kernel needs the batch axis
            mask = mask[None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return y[..., :width]


def _by_flex(
    q: Tensor, k: Tensor, v: Tensor, ctx: Context | AttentionView, *, scale: float | None, **bounds: Any
) -> Tensor:
    """Attention by FlexAttention; the layers of a pass share the form of their mask."""
    bias: flex.Pair | None = None
    if isinstance(ctx, Context):
        mask = ctx.shared("block mask", lambda: None if ctx.visible is None else flex.block_mask(ctx.visible))
        if ctx.logit_bias is not None and ctx.logit_bias.of_pair is not None:
            bias = flex.positions_pair(ctx.logit_bias.of_pair, ctx.q_pos, ctx.k_pos)
        elif ctx.bias is not None:
            bias = flex.dense_pair(ctx.bias)
    else:
        mask, bias = ctx.block_mask, None if ctx.bias is None else flex.dense_pair(ctx.bias)
    return flex.flex_attention(q, k, v, mask, bias, scale=scale, **bounds)


def _needs_float32(q: Tensor, ctx: Context | AttentionView) -> bool:
    """True if a bias or score would be rounded to 16 bits: by autocast, or to the dtype of q."""
    if autocasts(q.device):
        return ctx.bias is not None or hasattr(ctx.position, "score")
    return ctx.bias is not None and precise(q.dtype) != q.dtype


def _reach(ctx: Context | AttentionView) -> Reach | None:
    return Reach.of(ctx) if isinstance(ctx, Context) else ctx.reach


def attend_by_steps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx: Context | AttentionView,
    *,
    scale: float,
    dropout: float = 0.0,
    softcap: float = 0.0,
    on_scores: Callable[[Tensor], Tensor] | None = None,
    on_shares: Callable[[Tensor], Tensor] | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute `attend` in separate steps, for variants that SDPA does not support; shapes as in `attend`.

    softcap    c in c tanh(x / c), the bound on q k^T * scale before bias and mask; 0: none
    on_scores  function of q k^T * scale (B, H, T, S), before bias and mask
    on_shares  function of the attention probabilities (B, H, T, S)
    sinks      (H,): per head, the logit of an additional key with value zero

    Where FlexAttention serves (softcap and sinks on a GPU), it computes all of it at once.
    """
    composed = on_scores is not None or on_shares is not None
    if kernel_for(q, k, v, ctx, dropout=dropout, bounded=True, composed=composed) == "flex":
        return _by_flex(q, k, v, ctx, scale=scale, softcap=softcap, sinks=sinks)
    k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    scores = (q * scale) @ k.transpose(-1, -2)  # (B, H, T, S)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    logits = shown(scores if on_scores is None else on_scores(scores), q, k, ctx)
    if sinks is None:
        shares = logits.softmax(-1)
    else:
        sink = sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        shares = torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1]  # the sink's value is 0: drop its probability
    shares = shares if on_shares is None else on_shares(shares)
    shares = F.dropout(shares, dropout) if dropout else shares
    return shares.to(v.dtype) @ v


def shown(scores: Tensor, q: Tensor, k: Tensor, ctx: Context | AttentionView) -> Tensor:
    """Add the position's bias and score to `scores` (B, H, T, S) and set invisible keys to -inf."""
    if hasattr(ctx.position, "score"):
        return scores + _with_score(q, k, ctx)
    if ctx.bias is not None:
        return scores + ctx.additive  # type: ignore[operator]
    if ctx.visible is not None:
        return scores.masked_fill(~ctx.visible, float("-inf"))
    if ctx.is_causal and q.shape[2] > 1:
        return scores.masked_fill(~torch.ones_like(scores[0, 0], dtype=torch.bool).tril(), float("-inf"))
    return scores


def _with_score(q: Tensor, k: Tensor, ctx: Context | AttentionView) -> Tensor:
    if autocasts(q.device):
        with without_autocast(q.device):
            return _with_score(q.to(precise(q.dtype)), k.to(precise(k.dtype)), ctx)
    extra: Tensor = ctx.position.score(q, k, ctx.q_pos, ctx.k_pos)
    if ctx.additive is not None:
        return extra + ctx.additive
    return extra if ctx.visible is None else extra.masked_fill(~ctx.visible, float("-inf"))


def repeated(x: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads for their query heads: (B, H_kv, S, d_head) -> (B, heads, S, d_head).

    SDPA's enable_gqa expands before the kernel on a CPU, too; done here, the gradients stay on the fused path.
    """
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def split_heads(x: Tensor, d_head: int) -> Tensor:
    """Split the last axis into heads: (B, T, H * d_head) -> (B, H, T, d_head)."""
    return x.view(*x.shape[:-1], -1, d_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads: (B, H, T, d_head) -> (B, T, H * d_head)."""
    return x.transpose(1, 2).flatten(-2)
