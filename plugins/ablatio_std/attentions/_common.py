"""Shared code of the recurrent attentions: tokens sorted by document, recurrences in chunks, short convolutions."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ablatio.model.context import Context

CHUNK = 64  # tokens; within a chunk all pairs are computed at once, across chunks the state is carried


class Rows:
    """The tokens of a pass sorted by document, so that a recurrence can reset its state between documents.

    documents  (B, T)  document ids of the sorted tokens; None if each row is one document
    before     (B, n)  document ids of the tokens in the cache, or None
    """

    def __init__(self, ctx: Context) -> None:
        self.documents, self.before, self.order = ctx.segments, None, None
        if ctx.segments is None or ctx.key_segments is None:
            return
        if ctx.cache is not None:  # decoding: tokens arrive in order, so there is nothing to sort
            self.before = ctx.key_segments[:, : ctx.past]
            return
        self.order = ctx.segments.argsort(dim=1, stable=True)  # a document may be split into several segments of a row
        self.back = self.order.argsort(dim=1)
        self.documents = ctx.segments.gather(1, self.order)

    @classmethod
    def of(cls, ctx: Context) -> "Rows":
        """The Rows of a pass, made once for all layers."""
        return ctx.shared("rows", lambda: cls(ctx))

    def sorted(self, x: Tensor) -> Tensor:
        """Sort the tokens of x by document.  (B, ..., T, F) -> same."""
        return x if self.order is None else _permute_tokens(x, self.order)

    def restored(self, x: Tensor) -> Tensor:
        """Undo `sorted`.  (B, ..., T, F) -> same."""
        return x if self.order is None else _permute_tokens(x, self.back)


def _permute_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Gather x (B, ..., T, F) at index (B, T) along the axis of the tokens."""
    shape = (len(index), *(1,) * (x.dim() - 3), index.shape[1], 1)
    return x.gather(-2, index.view(shape).expand(x.shape))


class Chunk(NamedTuple):
    """Decay factors of C consecutive tokens in a recurrence S_t = a_t S_{t-1} + ..., reset between documents.

    part                  slice of the chunk in the row
    within  (B, H, C, C)  decay from s <= t to t; 0 for s > t
    start   (B, H, C, 1)  decay from the state before the chunk to t
    end     (B, H, C, 1)  decay from t to the end of the chunk
    whole   (B, H, 1, 1)  decay from the state before the chunk to its end
    """

    part: slice
    within: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor


def chunks(length: int, log_decay: Tensor, rows: Rows, size: int = CHUNK) -> Iterator[Chunk]:
    """Split a row of `length` tokens into chunks of `size` and yield the decay factors of each.

    log_decay (B or 1, H, T): log a_t, in the order of `rows`; (1, 1, 1) of zero for no decay.

    The logs are summed for each pair of tokens separately: a difference of cumulative sums over the row would carry
    rounding errors from one document into the next.
    """
    log_decay, carried = log_decay.expand(*log_decay.shape[:2], length), None
    if rows.before is not None and rows.before.shape[1]:
        carried = rows.before[:, -1:]
    for begin in range(0, length, size):
        part = slice(begin, min(begin + size, length))
        width = part.stop - begin
        pairs = torch.ones(width, width, dtype=torch.bool, device=log_decay.device).tril()
        documents = None if rows.documents is None else rows.documents[:, part]  # (B, C)
        if documents is not None:
            pairs = (pairs & (documents[:, :, None] == documents[:, None, :]))[:, None]  # (B, 1, C, C)
        # (B, H, C, C): the sum of log a_l over l = s ... t; shifted by one below, since a_s acts before s is added
        sums = (log_decay[..., None, part] * pairs).flip(-1).cumsum(-1).flip(-1)
        start = sums[..., :1].exp()
        within = nn.functional.pad(sums[..., 1:], (0, 1)).exp() * pairs
        end, whole = within[..., -1:, :].mT, start[..., -1:, :]
        if documents is not None and carried is not None:  # the carried state counts for its own document only
            start = start * (documents == carried)[:, None, :, None]
            whole = start[..., -1:, :]
        if documents is not None:
            carried = documents[:, -1:]
        yield Chunk(part, within, start, end, whole)


def accumulate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o_t = q_t S_t with S_t = a_t S_{t-1} + k_t^T v_t, computed chunk by chunk.

    q, k (B, H, T, F), v (B, H, T, V), all in the order of `rows`; `state` (B, H, F, V) precedes the first token, None
    for zero.  Returns o, (B, H, T, V), and the last state, (B, H, F, V).
    """
    last = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for part, within, start, end, whole in chunks(q.shape[2], log_decay, rows):
        q_, k_, v_ = q[:, :, part], k[:, :, part], v[:, :, part]
        outputs.append((q_ @ k_.mT * within) @ v_ + (q_ * start) @ last)
        last = last * whole + (k_ * end).mT @ v_
    return torch.cat(outputs, dim=2), last


class ShortConv(nn.Module):
    """y_t = sum_i w_i * x_{t-i}, i < width, within the document, for each channel.  (B, T, D) -> same."""

    roles = {"weight": "vector"}  # noqa: RUF012  (keeps its own initial scale, which no init changes)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Tensor, rows: Rows, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve x (B, T, D), in the order of `rows`, and return the result and the past for the next call.

        past (B, width - 1, D): the inputs before x; None for zeros.
        """
        reach, length = len(self.weight) - 1, x.shape[1]
        if past is None:
            past = x.new_zeros(len(x), reach, x.shape[2])
        inputs, same = torch.cat([past.to(x.dtype), x], dim=1), None  # (B, reach + T, D)
        if rows.documents is not None:
            before = rows.documents[:, :0] if rows.before is None or reach == 0 else rows.before[:, -reach:]
            documents = nn.functional.pad(torch.cat([before, rows.documents], dim=1), (reach - before.shape[1], 0))
            same = documents.unfold(1, length, 1).mT == rows.documents[..., None]  # (B, T, width), the oldest first
        y = x * self.weight[0]
        for i in range(1, reach + 1):
            earlier = inputs[:, reach - i : reach - i + length]  # (B, T, D): x_{t-i}
            y = y + (earlier if same is None else earlier * same[..., reach - i, None]) * self.weight[i]
        return y, inputs[:, length:]


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert 16-bit tensors to float32: sums over a whole text lose too much precision in 16 bits."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which autocast is off; on the meta device, which has no autocast, it does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
