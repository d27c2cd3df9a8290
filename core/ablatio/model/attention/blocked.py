"""Causal softmax attention by blocks of queries, for biases and packed documents on a CPU.

SDPA's fused kernel skips future keys only with `is_causal`, which excludes a bias or a document mask; with a trained
bias it is not fused at all and stores every probability. Here a block of queries reads the keys from the first one that
any of its queries may see up to its last query, and the backward pass recomputes the probabilities of each block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablatio.model.cost.meta_tensors import is_meta_tensor

BLOCK = 64  # queries per block: up to a few thousand keys, the probabilities of one batch row then fit the L2 cache


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    first: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax(q k^T * scale + bias) v, where query t sees the keys from first[t] up to its own position.

    q (B, H, T, d); k, v (B, H, S, d): the queries are the last T of S tokens.  -> (B, H, T, d)
    bias     (H, T, S) or (B, H, T, S); gradients are supported
    first    (T,) or (B, T): index, from 0 to S - 1, of the first key that each query sees: the start of its document
    window   maximum number of keys that a query sees, its own included
    scale    default 1 / sqrt(d)
    """
    if window is not None:
        edge = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device) - window + 1
        first = edge.clamp(min=0) if first is None else torch.maximum(first, edge)
    if bias is not None:
        bias = (bias[0] if bias.dim() == 4 and len(bias) == 1 else bias).to(q.dtype)
        bias = bias.expand(*bias.shape[:-3], *q.shape[1:3], k.shape[2])
    out: Tensor = _Blocked.apply(q * (q.shape[-1] ** -0.5 if scale is None else scale), k, v, bias, first)  # type: ignore[no-untyped-call]
    return out


class _Blocked(torch.autograd.Function):
    """P = softmax(q k^T + bias), out = P v, with dS = P (dP - rowsum(dP P)) and rowsum(dP P) = rowsum(dout out)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, first: Tensor | None) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        # (B, H, T, d) in the memory layout (B, T, H, d), so that merge_heads needs no copy.
        out = q.new_empty(q.shape[0], *q.shape[2:0:-1], q.shape[3]).transpose(1, 2)
        blocks = () if is_meta_tensor(q) else _blocks(q, k, bias, first)
        with torch.autocast(q.device.type, enabled=False):
            for b, rows, keys, added in blocks:
                p = torch.baddbmm(added, q[b, :, rows], k[b, :, keys].mT).softmax(-1)
                out[b, :, rows] = torch.bmm(p, v[b, :, keys])
        ctx.save_for_backward(q, k, v, bias, first, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, first, out = ctx.saved_tensors
        grad = grad.contiguous()
        neg_row_sums = (grad * out).sum(-1, keepdim=True).neg_()  # -rowsum(dout out): (B, H, T, 1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = torch.zeros(bias.shape, dtype=bias.dtype, device=bias.device) if ctx.needs_input_grad[3] else None
        for b, rows, keys, added in _blocks(q, k, bias, first):
            queries, seen, g = q[b, :, rows], k[b, :, keys], grad[b, :, rows]
            p = torch.baddbmm(added, queries, seen.mT).softmax(-1)
            ds = torch.baddbmm(neg_row_sums[b, :, rows], g, v[b, :, keys].mT).mul_(p)  # (H, rows, keys)
            dv[b, :, keys].baddbmm_(p.mT, g)
            dk[b, :, keys].baddbmm_(ds.mT, queries)
            dq[b, :, rows] = torch.bmm(ds, seen)
            if dbias is not None:
                (dbias if dbias.dim() == 3 else dbias[b])[:, rows, keys] += ds
        return dq, dk, dv, dbias, None


def _blocks(
    q: Tensor, k: Tensor, bias: Tensor | None, first: Tensor | None
) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Yield (batch row, queries, keys, bias plus mask: (H or 1, queries, keys)) for each block."""
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    starts = None if first is None else first.view(-1, length)
    alike = (starts is None or len(starts) == 1) and (bias is None or bias.dim() == 3)
    later = q.new_full((BLOCK, BLOCK), float("-inf")).triu_(1)  # masks are added: unlike filling, that is vectorized
    lows, before, added = [0], None, later
    for start in range(0, length, BLOCK):
        rows = slice(start, min(start + BLOCK, length))
        count, end = rows.stop - start, past + rows.stop
        if starts is not None:
            lows = starts[:, rows].amin(1).tolist()
            key = torch.arange(min(lows), end, device=q.device)
            before = torch.where(key < starts[:, rows, None], float("-inf"), 0.0).to(q.dtype)  # (B or 1, queries, keys)
        for b in range(len(q)):
            own = b if len(lows) > 1 else 0
            keys = slice(lows[own], end)
            if b == 0 or not alike:
                added = q.new_zeros(1, count, end - keys.start) if bias is None else _part(bias, b, rows, keys)
                added[..., -count:] += later[:count, :count]
                if before is not None:
                    added += before[own, :, keys.start - min(lows) :]
            yield b, rows, keys, added


def _part(bias: Tensor, b: int, rows: slice, keys: slice) -> Tensor:
    """A copy of the bias of one block: (H, queries, keys)."""
    part = (bias if bias.dim() == 3 else bias[b])[:, rows, keys]
    return part.clone(memory_format=torch.contiguous_format)
