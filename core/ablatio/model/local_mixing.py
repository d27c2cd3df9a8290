"""Mixing of neighboring tokens within a document: tokens sorted by document, the token before, short convolutions.

Their states in the cache let decoding continue where the last pass ended.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.context import Context


class Rows:
    """The tokens of a pass sorted by document, so that a recurrence can reset its state between documents.

    documents  (B, T)  document ids of the sorted tokens; None if each row is one document
    """

    def __init__(self, ctx: Context) -> None:
        self.documents, self.order, self._decoded = ctx.segments, None, None
        if ctx.segments is None or ctx.key_segments is None:
            return
        if ctx.cache is not None:  # decoding: tokens arrive in order, so there is nothing to sort
            self._decoded = ctx
            return
        self.order = ctx.segments.argsort(dim=1, stable=True)  # a document may be split into several segments of a row
        self.back = self.order.argsort(dim=1)
        self.documents = ctx.segments.gather(1, self.order)

    @classmethod
    def of(cls, ctx: Context) -> "Rows":
        """The Rows of a pass, made once for all layers."""
        return ctx.shared("rows", lambda: cls(ctx))

    def before(self, count: int) -> Tensor | None:
        """Documents of the last `count` tokens in the cache, or of as many as it has: (B, n); None: it has none."""
        ctx = self._decoded
        if ctx is None or ctx.key_segments is None or ctx.begins:
            return None
        if ctx.filled is None:
            return ctx.key_segments[:, max(0, ctx.past - count) : ctx.past]
        # Of fewer tokens the first is repeated: as many are returned for each token.
        places = ctx.filled + torch.arange(-count, 0, device=ctx.filled.device)
        return ctx.key_segments.index_select(1, places.clamp(min=0))

    def sorted(self, x: Tensor) -> Tensor:
        """Sort the tokens of x by document.  (B, ..., T, F) -> same."""
        return x if self.order is None else _permute_tokens(x, self.order)

    def restored(self, x: Tensor) -> Tensor:
        """Undo `sorted`.  (B, ..., T, F) -> same."""
        return x if self.order is None else _permute_tokens(x, self.back)

    def starts(self, length: int, device: torch.device) -> Tensor:
        """True for tokens whose document differs from that of the token before them: (B, T), or (1, T) of False."""
        if self.documents is None:
            return torch.zeros(1, length, dtype=torch.bool, device=device)
        before = self.before(1)
        before = self.documents[:, :1] if before is None else before
        return self.documents != torch.cat([before, self.documents[:, :-1]], dim=1)


def _permute_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Gather x (B, ..., T, F) at index (B, T) along the axis of the tokens."""
    shape = (len(index), *(1,) * (x.dim() - 3), index.shape[1], 1)
    return x.gather(-2, index.view(shape).expand(x.shape))


def cached_state(ctx: Context, layer: Hashable, count: int) -> tuple[Any, ...]:
    """Return the `count` tensors that `layer` keeps in the cache; None for each at the start of a text."""
    state = None if ctx.cache is None else ctx.cache.state(layer)
    return (None,) * count if state is None else state


def previous(x: Tensor, rows: Rows, past: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x_{t-1}, 0 for the first token of a document, and the past for the next call.

    x (B, T, D), in the order of `rows`; past (B, 1, D): the input before x; None for zeros.
    """
    past = x.new_zeros(len(x), 1, x.shape[2]) if past is None else past.to(x.dtype)
    before = torch.cat([past, x[:, :-1]], dim=1)
    if rows.documents is not None:
        before = before.masked_fill(rows.starts(x.shape[1], x.device)[..., None], 0.0)
    return before, x[:, -1:]


class ShortConv(nn.Module):
    """y_t = b + sum_i w_i * x_{t-i}, i < width, within the document, for each channel.  (B, T, D) -> same.

    b is 0 without `bias`.
    """

    roles = {"weight": "vector"}  # noqa: RUF012  (keeps its own initial scale, which no init changes)

    def __init__(self, channels: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
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
            before = rows.before(reach)
            before = rows.documents[:, :0] if before is None else before
            documents = F.pad(torch.cat([before, rows.documents], dim=1), (reach - before.shape[1], 0))
            same = documents.unfold(1, length, 1).mT == rows.documents[..., None]  # (B, T, width), the oldest first
        y = x * self.weight[0]
        for i in range(1, reach + 1):
            earlier = inputs[:, reach - i : reach - i + length]  # (B, T, D): x_{t-i}
            y = y + (earlier if same is None else earlier * same[..., reach - i, None]) * self.weight[i]
        return y if self.bias is None else y + self.bias, inputs[:, length:]


def convolve(convs: Iterable[nn.Module], inputs: Sequence[Tensor], layer: Hashable, ctx: Context) -> list[Tensor]:
    """Apply to each input (B, T, D) its convolution, within documents; the cache keeps the last inputs of each."""
    rows, results = Rows.of(ctx), []
    state = None if ctx.cache is None else ctx.cache.state(layer)
    for i, (conv, x) in enumerate(zip(convs, inputs, strict=True)):
        results.append(conv(rows.sorted(x), rows, None if state is None else state[i]))
    if ctx.cache is not None:
        ctx.cache.keep(layer, *(past for _, past in results))
    return [rows.restored(y) for y, _ in results]
