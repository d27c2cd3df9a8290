"""Keys of a pass in blocks of consecutive tokens of their document, for attentions that choose blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """N blocks of `size` tokens; rows without packed documents share one entry (R = 1), else R = B.

    slot      (R, S)        number of each key's block
    keys      (R, N, size)  the keys of each block in order; 0 where there is none
    full      (R, N)        True if no key is missing
    start     (R, N)        position of the block's first token in its document; S for an empty block
    document  (R, N)        document of the block; None: one document per row
    """

    size: int
    slot: Tensor
    keys: Tensor
    full: Tensor
    start: Tensor
    document: Tensor | None

    @classmethod
    def of(cls, ctx: Context, size: int) -> "Blocks":
        """The blocks of a pass, made once for all layers with this size."""
        return ctx.shared(("blocks", size), lambda: cls._made(ctx, size))

    @classmethod
    def _made(cls, ctx: Context, size: int) -> "Blocks":
        place, segments, length = torch.atleast_2d(ctx.k_pos), ctx.key_segments, ctx.key_length
        if segments is None:
            # Positions are those within the document, so that blocks begin where documents do.
            slot, count = place // size, -(-length // size)
        else:  # a document may be split into several segments of a row, so its tokens are brought together first
            order = segments.argsort(dim=1, stable=True)
            numbers = (place.gather(1, order) % size == 0).cumsum(1) - 1
            slot = torch.empty_like(numbers).scatter(1, order, numbers)
            # At most one block for each token: a meta tensor has no numbers to count.
            count = length if is_meta_tensor(slot) else int(slot.max()) + 1
        index = torch.arange(length, device=slot.device).expand_as(slot)
        keys = slot.new_zeros(len(slot), count * size).scatter(1, slot * size + place % size, index)
        full = slot.new_zeros(len(slot), count).scatter_add(1, slot, torch.ones_like(slot)) == size
        # A row with fewer blocks than others has empty ones: they start after all tokens, so that no query sees them.
        start = slot.new_full((len(slot), count), length).scatter(1, slot, place - place % size)
        document = None if segments is None else segments.new_zeros(len(slot), count).scatter(1, slot, segments)
        return cls(size, slot, keys.unflatten(1, (count, size)), full, start, document)

    def own(self, ctx: Context) -> Tensor:
        """True for the block that a query's token is in: (R, 1, T, N)."""
        numbers = torch.arange(self.start.shape[1], device=self.slot.device)
        return (self.slot[:, ctx.past :, None] == numbers)[:, None]

    def until(self, ctx: Context, places: Tensor, *, strictly: bool = False) -> Tensor:
        """True for blocks of the query's document whose `places` (R, N) are at most, or before, its own: (R, 1, T, N).

        strictly: compare with the first token of the query's block
        """
        q_pos = torch.atleast_2d(ctx.q_pos)[..., None]
        seen = places[:, None] < q_pos - q_pos % self.size if strictly else places[:, None] <= q_pos
        if self.document is not None and ctx.segments is not None:
            seen = seen & (self.document[:, None] == ctx.segments[..., None])
        return seen[:, None]

    def sums(self, x: Tensor) -> Tensor:
        """Sum x (B, H, S, F) over the keys of each block: (B, H, N, F)."""
        index = self.slot[:, None, :, None].expand(x.shape)
        return x.new_zeros(*x.shape[:2], self.start.shape[1], x.shape[3]).scatter_add(2, index, x)

    def gathered(self, x: Tensor) -> Tensor:
        """Gather x (B, H, S, F) by block: (B, H, N, size, F)."""
        flat = self.keys.flatten(1)[:, None, :, None].expand(*x.shape[:2], -1, x.shape[3])
        return x.gather(2, flat).unflatten(2, self.keys.shape[1:])

    def shown(self, chosen: Tensor) -> Tensor:
        """True for the keys of the chosen blocks: (B, H, T, N) -> (B, H, T, S)."""
        index = self.slot[:, None, None].expand(*chosen.shape[:3], -1)
        return chosen.gather(-1, index)


def best(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest scores above -inf: (..., N) -> same."""
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    chosen = scores.topk(min(count, scores.shape[-1]), dim=-1).indices
    # topk returns as many as were asked for, also where fewer are allowed.
    found = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)
    return found & (scores > float("-inf"))
