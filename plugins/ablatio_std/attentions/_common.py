"""What recurrent attentions share: tokens in the order of their documents, states carried from chunk to chunk."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ablatio.model.context import Context

CHUNK = 64  # tokens whose pairs are looked at one by one


class Rows:
    """The tokens of a pass, one document behind the other, so that a recurrence starts anew at each border.

    documents  (B, T) of the sorted tokens, or None when there is one
    before     (B, n) documents of the tokens that the cache has seen, or None
    """

    def __init__(self, ctx: Context) -> None:
        self.documents, self.before, self.order = ctx.segments, None, None
        if ctx.segments is None or ctx.key_segments is None:
            return
        if ctx.cache is not None:  # a text that is being written: its pieces lie in order
            self.before = ctx.key_segments[:, : ctx.past]
            return
        self.order = ctx.segments.argsort(dim=1, stable=True)  # a document may lie in several pieces
        self.back = self.order.argsort(dim=1)
        self.documents = ctx.segments.gather(1, self.order)

    @classmethod
    def of(cls, ctx: Context) -> "Rows":
        return ctx.shared("rows", lambda: cls(ctx))

    def sorted(self, x: Tensor) -> Tensor:
        """(B, ..., T, F) document after document."""
        return x if self.order is None else _along(x, self.order)

    def restored(self, x: Tensor) -> Tensor:
        """(B, ..., T, F) as they came."""
        return x if self.order is None else _along(x, self.back)


def _along(x: Tensor, index: Tensor) -> Tensor:
    shape = (len(index), *(1,) * (x.dim() - 3), index.shape[1], 1)
    return x.gather(-2, index.view(shape).expand(x.shape))


class Chunk(NamedTuple):
    """One stretch of C tokens in a recurrence S_t = a_t S_{t-1} + ..., which starts anew in each document.

    within  (B, H, C, C)  what is left at t of what s <= t put in
    start   (B, H, C, 1)  what is left at t of the state before the chunk
    end     (B, H, C, 1)  what is left at the end of what t put in
    whole   (B, H, 1, 1)  what is left at the end of the state before
    """

    part: slice
    within: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor


def chunks(length: int, log_decay: Tensor, rows: Rows, size: int = CHUNK) -> Iterator[Chunk]:
    """log_decay (B or 1, H, T): log a_t, in the order of `rows`; or (1, 1, 1) zero for a state that keeps all.

    Decays are summed up for each pair by itself: a difference of running sums would carry the rounding of one document
    into the next.
    """
    log_decay, carried = log_decay.expand(*log_decay.shape[:2], length), None
    if rows.before is not None and rows.before.shape[1]:
        carried = rows.before[:, -1:]
    for begin in range(0, length, size):
        part = slice(begin, min(begin + size, length))
        width = part.stop - begin
        pairs = torch.ones(width, width, dtype=torch.bool, device=log_decay.device).tril()
        own = None if rows.documents is None else rows.documents[:, part]
        if own is not None:
            pairs = (pairs & (own[:, :, None] == own[:, None, :]))[:, None]
        steps = (log_decay[..., None, part] * pairs).flip(-1).cumsum(-1).flip(-1)  # sum of log a_l, l = s ... t
        start = steps[..., :1].exp()
        within = nn.functional.pad(steps[..., 1:], (0, 1)).exp() * pairs
        end, whole = within[..., -1:, :].mT, start[..., -1:, :]
        if own is not None and carried is not None:
            start = start * (own == carried)[:, None, :, None]
            whole = start[..., -1:, :]
        if own is not None:
            carried = own[:, -1:]
        yield Chunk(part, within, start, end, whole)


def accumulate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o_t = q_t S_t, S_t = a_t S_{t-1} + k_t^T v_t: q, k (B, H, T, F), v (B, H, T, V) -> (B, H, T, V), (B, H, F, V)."""
    held = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    said = []
    for part, within, start, end, whole in chunks(q.shape[2], log_decay, rows):
        q_, k_, v_ = q[:, :, part], k[:, :, part], v[:, :, part]
        said.append((q_ @ k_.mT * within) @ v_ + (q_ * start) @ held)
        held = held * whole + (k_ * end).mT @ v_
    return torch.cat(said, dim=2), held


class ShortConv(nn.Module):
    """y_t = sum_i w_i * x_{t-i} over the last `width` tokens of the document, for each channel.  (B, T, D) -> same."""

    roles = {"weight": "vector"}  # noqa: RUF012  (its scale is its own, not an init's)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Tensor, rows: Rows, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x in the order of `rows`; past: the last `width` - 1 inputs before it, which come back for the next call."""
        most, length = len(self.weight) - 1, x.shape[1]
        if past is None:
            past = x.new_zeros(len(x), most, x.shape[2])
        line, same = torch.cat([past.to(x.dtype), x], dim=1), None
        if rows.documents is not None:
            before = rows.documents[:, :0] if rows.before is None or most == 0 else rows.before[:, -most:]
            documents = nn.functional.pad(torch.cat([before, rows.documents], dim=1), (most - before.shape[1], 0))
            same = documents.unfold(1, length, 1).mT == rows.documents[..., None]  # (B, T, width), the oldest first
        y = x * self.weight[0]
        for i in range(1, most + 1):
            earlier = line[:, most - i : most - i + length]
            y = y + (earlier if same is None else earlier * same[..., most - i, None]) * self.weight[i]
        return y, line[:, length:]


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sums over a whole text lose too much in 16 bits."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
