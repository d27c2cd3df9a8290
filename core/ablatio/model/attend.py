"""Softmax attention, by the fastest kernel that says the same."""

import torch.nn.functional as F
from torch import Tensor

from ablatio.model.context import Context


def attend(
    q: Tensor, k: Tensor, v: Tensor, ctx: Context, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T * scale + bias) v over the keys that each query may see.

    q (B, H, T, d_head); k, v (B, H_kv, S, d_head) with H a multiple of H_kv -> (B, H, T, d_head).
    scale: 1 / sqrt(d_head) by default.  dropout: of the attention probabilities.
    The fused causal kernel runs whenever no bias, no score and no document border asks for more.
    """
    if k.shape[1] != q.shape[1]:
        # Expanding before the kernel is what enable_gqa does on the CPU too; here gradients stay on the fused path.
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    score = getattr(ctx.position, "score", None)
    if score is not None:
        extra = score(q, k, ctx.q_pos, ctx.k_pos)
        if ctx.additive is not None:
            extra = extra + ctx.additive
        elif ctx.visible is not None:
            extra = extra.masked_fill(~ctx.visible, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=extra, dropout_p=dropout, scale=scale)
    if ctx.is_causal:
        causal = q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout, scale=scale)
    mask = ctx.additive if ctx.bias is not None else ctx.visible
    if mask is not None and mask.dim() == 3:  # (H, T, S): the kernel wants the batch axis
        mask = mask[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def split_heads(x: Tensor, d_head: int) -> Tensor:
    """(B, T, H * d_head) -> (B, H, T, d_head)."""
    return x.view(*x.shape[:-1], -1, d_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, d_head) -> (B, T, H * d_head)."""
    return x.transpose(1, 2).flatten(-2)
