"""Documents of a pass cut into mini-batches, for attentions that are trained on them as they are read."""

from typing import NamedTuple

import torch
from torch import Tensor

from ablatio.model.attention.softmax_attention import SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.local_mixing import Rows


class Pieces(NamedTuple):
    """The P documents, or parts of one, in a pass, each padded to N mini-batches that begin where its own ones do.

    size                the tokens of a padded piece, N * batch
    place       (B, T)  place of each sorted token among the P * N * batch padded ones
    first, last (B,)    number of a row's first and last piece
    last_batch  (P,)    mini-batch in which a piece ends
    goes_on     (B,)    True if a row's first piece continues the cached text
    complete    (B,)    True if it begins with a mini-batch
    """

    count: int
    size: int
    batch: int
    place: Tensor
    first: Tensor
    last: Tensor
    last_batch: Tensor
    goes_on: Tensor
    complete: Tensor

    @classmethod
    def of(cls, ctx: Context, n_rows: int, batch: int) -> "Pieces":
        """The pieces of a pass over `n_rows` rows."""
        rows, length, device = Rows.of(ctx), ctx.length, ctx.q_pos.device
        index = torch.arange(length, device=device).expand(n_rows, -1)
        pos = ctx.q_pos.expand(n_rows, -1)
        pos = pos if rows.order is None else pos.gather(1, rows.order)
        starts = rows.starts(length, device).expand(n_rows, -1)
        begin = index.masked_fill(~starts, 0).cummax(1).values  # of the piece that a token is in
        # A continued text goes on inside its mini-batch: mini-batches begin at multiples of `batch` in the text,
        # whatever the passes.
        phase = pos.gather(1, begin) % batch
        within = index - begin + phase
        if rows.documents is None or is_meta_tensor(index):  # one piece for each row
            last = torch.arange(n_rows, device=device)
            number, first, count, size = last[:, None], last, n_rows, length + ctx.past % batch
        else:
            own = starts.cumsum(1) - starts[:, :1].long()
            last = (own[:, -1] + 1).cumsum(0) - 1
            first = last - own[:, -1]
            number, count, size = first[:, None] + own, int(last[-1]) + 1, int(within.max()) + 1
        size = -(-size // batch) * batch
        ends = within.new_zeros(count).scatter_reduce(0, number.expand_as(within).flatten(), within.flatten(), "amax")
        place = number * size + within
        return cls(count, size, batch, place, first, last, ends // batch, ~starts[:, 0], phase[:, 0] == 0)

    def cut(self, x: Tensor) -> Tensor:
        """Arrange sorted tokens by piece and mini-batch: (B, H, T, F) -> (P, H, N, batch, F), padded with zeros."""
        flat = x.transpose(1, 2).flatten(0, 1)  # (B * T, H, F)
        padded = x.new_zeros(self.count * self.size, *flat.shape[1:]).index_copy(0, self.place.flatten(), flat)
        return padded.unflatten(0, (self.count, -1, self.batch)).permute(0, 3, 1, 2, 4)

    def restored(self, x: Tensor) -> Tensor:
        """Undo `cut`, with the heads side by side: (P, H, N, batch, F) -> (B, T, H * F)."""
        return x.permute(0, 2, 3, 1, 4).reshape(self.count * self.size, -1)[self.place]


class InnerTraining(SoftmaxAttention):
    """Attention whose state is trained on the keys and values of `batch` tokens at a time; causal only."""

    takes_bias = False
    rotates_cached_keys = False
    cross = False
    bidirectional = False
    queries_scale = False
    float32_products = True
    waits = "how many mini-batches a row has depends on the lengths of its documents"
    batch: int

    def pieces(self, x: Tensor, ctx: Context) -> tuple[Rows, Pieces]:
        """The order of the tokens by document, and their mini-batches, which layers with equal `batch` share."""
        made = ctx.shared(("pieces", self.batch, len(x)), lambda: Pieces.of(ctx, len(x), self.batch))
        return Rows.of(ctx), made
