"""Recurrences of each channel by itself, with their gradients: memory for one state per token, or per block of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.local_mixing import Rows

BLOCK = 32  # tokens whose states are in memory at the same time in a selective scan


def scan(a: Tensor, b: Tensor, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """h_t = a_t * h_{t-1} + b_t in each channel: h, and its last value, (B, ...).

    a, b (B, T, ...), in the order of `rows`; `state` (B, ...) precedes the first token, None for zero.
    """
    if rows.documents is not None:
        starts = rows.starts(a.shape[1], a.device)
        # A decay of 0 forgets the document before; later sums need no mask.
        a = a.masked_fill(starts.reshape(*starts.shape, *(1,) * (a.dim() - 2)), 0.0)
    if state is not None:
        b = torch.cat([b[:, :1] + a[:, :1] * state[:, None], b[:, 1:]], dim=1)
    h: Tensor = _Scan.apply(a, b)
    return h, h[:, -1]


class _Scan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t; the gradient of b is the same recurrence backwards."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _recur(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        none = torch.zeros_like(a[:, :1])
        # dL/db_t = g_t + a_{t+1} dL/db_{t+1}: the decay of the next token leads back.
        grad_b = _recur(torch.cat([a[:, 1:], none], dim=1), grad, back=True)
        return torch.cat([none, grad_b[:, 1:] * h[:, :-1]], dim=1), grad_b


def _recur(a: Tensor, b: Tensor, *, back: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + b_t, or with `back` h_t = a_t h_{t+1} + b_t: all chunks at once, then one after another."""
    # Two loops of 32 and T / 32 steps in place of T: each step is one operation on all chunks, or on one.
    length, size = a.shape[1], min(32, a.shape[1])
    none = [0, 0] * (a.dim() - 2)
    whole, h = (F.pad(x, [*none, 0, -length % size]).unflatten(1, (-1, size)).clone() for x in (a, b))
    count, step = whole.shape[1], -1 if back else 1
    for t in range(size - 2, -1, -1) if back else range(1, size):
        h[:, :, t].addcmul_(whole[:, :, t], h[:, :, t - step])
        whole[:, :, t].mul_(whole[:, :, t - step])  # the decay from the border of the chunk to t
    for n in range(count - 2, -1, -1) if back else range(1, count):
        edge = h[:, n + 1, :1] if back else h[:, n - 1, -1:]
        h[:, n].addcmul_(whole[:, n], edge)
    return h.flatten(1, 2)[:, :length]


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = h_t . c_t with h_t = exp(step_t a) * h_{t-1} + x_t b_t in each channel of x.

    x, step (B, T, D), a (D, N), b, c (B, T, N), in the order of `rows`; `state` (B, D, N) precedes the first token,
    None for zero.  Returns y, (B, T, D), and the last h, (B, D, N).  h is kept for a block of tokens only; the backward
    pass computes it again, which is faster than reading it from memory.
    """
    kept = 1 - rows.starts(x.shape[1], x.device).to(x.dtype).expand(len(x), -1)
    state = x.new_zeros(len(x), *a.shape) if state is None else state
    y, last = _SelectiveScan.apply(x, step, a, b, c, kept, state)
    return y, last


def _blocks(length: int) -> list[slice]:
    return [slice(begin, min(begin + BLOCK, length)) for begin in range(0, length, BLOCK)]


def _block(x: Tensor, step: Tensor, a: Tensor, b: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states h of one block of L tokens: (B, L, D, N) each."""
    decay = (step[..., None] * a).exp_().mul_(kept[..., None, None])
    h = x[..., None] * b[:, :, None]
    if h.is_meta:  # shapes are all that is asked for, and no FLOPs are counted in what follows
        return decay, h
    h[:, 0].addcmul_(decay[:, 0], state)
    for t in range(1, h.shape[1]):
        h[:, t].addcmul_(decay[:, t], h[:, t - 1])
    return decay, h


class _SelectiveScan(torch.autograd.Function):
    """`selective_scan`; kept (B, T) is 0 at the first token of a document, else 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, kept: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs, states = [], []
        for part in _blocks(x.shape[1]):
            # One state for each block is kept; those within it are made again from it.
            states.append(state)
            _, h = _block(x[:, part], step[:, part], a, b[:, part], kept[:, part], state)
            outputs.append((h @ c[:, part, :, None])[..., 0])
            state = h[:, -1].clone()
        ctx.save_for_backward(x, step, a, b, c, kept, torch.stack(states))
        return torch.cat(outputs, dim=1), state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, carried: Tensor) -> tuple[Tensor | None, ...]:
        x, step, a, b, c, kept, states = ctx.saved_tensors
        grad_x, grad_step, grad_b, grad_c = (torch.empty_like(t) for t in (x, step, b, c))
        grad_a = torch.zeros_like(a)
        for n, part in reversed(list(enumerate(_blocks(x.shape[1])))):
            decay, h = _block(x[:, part], step[:, part], a, b[:, part], kept[:, part], states[n])
            g = grad_y[:, part, :, None] * c[:, part, None]  # (B, L, D, N): the gradient of h
            # What the blocks after this one say of its last state.
            g[:, -1] += carried
            for t in range(g.shape[1] - 2, -1, -1):
                g[:, t].addcmul_(decay[:, t + 1], g[:, t + 1])
            carried = decay[:, 0] * g[:, 0]
            grad_x[:, part] = (g @ b[:, part, :, None])[..., 0]
            grad_b[:, part] = (x[:, part, None] @ g)[:, :, 0]
            grad_c[:, part] = (grad_y[:, part, None] @ h)[:, :, 0]
            through = g.mul_(decay)  # times h_{t-1}, it is the gradient of step_t a
            through[:, 0].mul_(states[n])
            through[:, 1:].mul_(h[:, :-1])
            grad_a += (through * step[:, part, :, None]).sum((0, 1))
            grad_step[:, part] = through.mul_(a).sum(-1)
        return grad_x, grad_step, grad_a, grad_b, grad_c, None, carried
