"""What all layers of one forward pass share: positions, who may see whom, the position's bias, the cache."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ablatio.model.cache import KVCache

MaskKind = Literal["causal", "full"]


@dataclass(slots=True)
class Example:
    """What an objective makes of rows of tokens.

    inputs, targets (B, T); weights (B, T) of each target's loss or None for all ones; segments (B, T) or None.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    segments: Tensor | None = None
    mask: MaskKind = "causal"


@dataclass(frozen=True)
class Context:
    """One pass of T new tokens that see S = past + T.

    segments, key_segments  (B, T), (B, S): tokens see only their own document; None when there is only one
    prepared                what the position's `rotate` takes in place of q_pos, if the position prepares it
    key_turn                the same for all S keys, where the cache keeps them unturned (`late` positions)
    losses                  extra losses that layers add (scalars)
    """

    mask: MaskKind
    q_pos: Tensor
    k_pos: Tensor
    past: int
    position: Any
    segments: Tensor | None = None
    key_segments: Tensor | None = None
    cache: KVCache | None = None
    bias: Tensor | None = None
    prepared: Any = None
    key_turn: Any = None
    losses: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.q_pos.shape[-1]

    @property
    def key_length(self) -> int:
        return self.past + self.length

    @property
    def is_causal(self) -> bool:
        """Whether the fused causal path says all: no bias, one document, nothing in the cache yet."""
        return self.mask == "causal" and self.bias is None and self.segments is None and self.past == 0

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q, k (B, H, T, d_head) turned by their positions, if the position does that."""
        rotate = getattr(self.position, "rotate", None)
        if rotate is None:
            return q, k
        turn = self.q_pos if self.prepared is None else self.prepared
        if self.key_turn is not None:  # no heads of keys: these are turned when all of them are there
            return rotate(q, q[:, :0], turn)[0], k
        turned: tuple[Tensor, Tensor] = rotate(q, k, turn)
        return turned

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens up to now: (B, H_kv, S, d_head)."""
        if self.cache is None:
            return k, v
        k, v = self.cache.update(layer, k, v)
        return k if self.key_turn is None else self.position.rotate(k[:, :0], k, self.key_turn)[1], v

    @cached_property
    def visible(self) -> Tensor | None:
        """True where a query may look: (T, S) or (B, 1, T, S); None when every key is seen."""
        device, rows = self.q_pos.device, None
        if self.mask == "causal" and self.length > 1:
            q = torch.arange(self.past, self.key_length, device=device)
            rows = q[:, None] >= torch.arange(self.key_length, device=device)
        if self.segments is None or self.key_segments is None:
            return rows
        same = (self.segments[:, :, None] == self.key_segments[:, None, :])[:, None]
        return same if rows is None else same & rows

    @cached_property
    def additive(self) -> Tensor | None:
        """Bias and mask in one tensor to be added to the logits: made once a pass, shared by the layers."""
        if self.visible is None or self.bias is None:
            return self.bias
        return self.bias.masked_fill(~self.visible, float("-inf"))


def make_context(
    tokens: Tensor, position: Any, mask: MaskKind, segments: Tensor | None, cache: KVCache | None, dtype: torch.dtype
) -> Context:
    """The context of one pass over `tokens` (B, T), which follow those in `cache`.

    Positions count from the start of each segment, so that a packed document is what it is alone.
    """
    past, length, device = cache.length if cache is not None else 0, tokens.shape[1], tokens.device
    key_segments = segments
    if cache is not None and (segments is not None or cache.segments is not None):
        key_segments = cache.segments = _extend(cache.segments, segments, tokens, past)
        segments = key_segments[:, past:]
    k_pos = torch.arange(past + length, device=device) if key_segments is None else _positions(key_segments)
    q_pos = k_pos[..., past:]
    bias = position.bias(q_pos, k_pos).to(dtype) if hasattr(position, "bias") else None
    prepared = key_turn = None
    if hasattr(position, "prepare"):
        seen = torch.tensor(past + length, device=device) if key_segments is None else _lengths(key_segments, k_pos)
        prepared = position.prepare(q_pos, dtype, seen[..., past:] if seen.dim() else seen)
        if cache is not None and getattr(position, "late", False):
            key_turn = position.prepare(k_pos, dtype, seen)
    return Context(mask, q_pos, k_pos, past, position, segments, key_segments, cache, bias, prepared, key_turn)


def _extend(old: Tensor | None, new: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """(B, S): the segments seen, and those of the new tokens; by default these belong to the last one's."""
    batch, length = tokens.shape
    if old is None:
        old = torch.zeros(batch, past, dtype=torch.long, device=tokens.device)
    if new is None:
        last = old[:, -1:] if past else torch.zeros(batch, 1, dtype=old.dtype, device=old.device)
        new = last.expand(batch, length)
    return torch.cat([old, new.to(old)], dim=1)


def _positions(segments: Tensor) -> Tensor:
    """(B, S) -> (B, S): how far each token is from the start of its segment."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def _lengths(segments: Tensor, pos: Tensor) -> Tensor:
    """(B, S) -> (B, S): how many tokens of its own segment are there for each token."""
    last = torch.ones_like(segments, dtype=torch.bool)
    last[:, :-1] = segments[:, 1:] != segments[:, :-1]
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    ends = torch.where(last, index, segments.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return pos + ends - index + 1
