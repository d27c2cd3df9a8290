"""What all layers of one forward pass share: positions, who may see whom, the position's bias, the cache."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.example import SHARED, positions_in_documents
from ablatio.model.kv_cache import KVCache

MaskKind = Literal["causal", "full"]
T = TypeVar("T")


@dataclass(slots=True)
class Record:
    """What the layers of one pass say beside their output, by name; layers that use one name are added up.

    losses    scalars that are added to the training loss
    measures  numbers for the log
    further   where siblings of the last layer leave their states (B, T, D); None: they are not asked
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    measures: dict[str, Tensor] = field(default_factory=dict)
    further: list[Tensor] | None = None


@dataclass(slots=True)
class EncoderOutput:
    """What an encoder gives to the decoder: states (B, S, D), and the documents (B, S) of their tokens."""

    states: Tensor
    segments: Tensor | None = None

    def select(self, rows: Tensor) -> "EncoderOutput":
        """These rows of the batch."""
        return EncoderOutput(self.states[rows], None if self.segments is None else self.segments[rows])


@dataclass(frozen=True)
class Context:
    """One pass of T new tokens that see S = past + T; in cross-attention, S states of the encoder.

    segments, key_segments  (B, T), (B, S): tokens see only their own document; None when there is only one
    opened                  (B, S): tokens that all of their document sees, also what stands before them (a prefix)
    prepared, prepared_keys what the position's `rotate` takes in place of q_pos, k_pos, if the position prepares it
    memory                  where keys and values come from in cross-attention; None in self-attention
    virtual                 keys at the start that stand for no token of the text
    cross                   the context of the cross-attention beside this one, in a decoder that has an encoder
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
    prepared_keys: Any = None
    opened: Tensor | None = None
    memory: Tensor | None = None
    cross: "Context | None" = None
    virtual: int = 0
    record: Record = field(default_factory=Record)
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.q_pos.shape[-1]

    @property
    def key_length(self) -> int:
        return self.k_pos.shape[-1]

    @property
    def is_causal(self) -> bool:
        """Whether the fused causal path says all: no bias, one document, no prefix, nothing in the cache yet."""
        plain = self.bias is None and self.segments is None and self.opened is None
        return self.mask == "causal" and plain and self.past == 0

    def add_loss(self, name: str, value: Tensor) -> None:
        """A scalar that is added to the training loss (times the number of targets)."""
        self._add(self.record.losses, name, value)

    def measure(self, name: str, value: Tensor) -> None:
        """A number for the log: layers are added up, so a share of a layer is divided by their number first."""
        self._add(self.record.measures, name, value.detach())

    @staticmethod
    def _add(to: dict[str, Tensor], name: str, value: Tensor) -> None:
        to[name] = to[name] + value if name in to else value

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What the first layer that asks makes, for all layers of this pass."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    def keys_values(
        self, layer: int, x: Tensor, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, S, d_head): of x, or of the encoder's states, then once per decoded text."""
        if self.memory is None:
            return project(x)
        if self.cache is None:
            return project(self.memory)
        return self.cache.once(layer, lambda: project(self.memory))  # type: ignore[arg-type]

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k turned by their positions, and k, v with those of all tokens up to now: (B, H_kv, S, d_head)."""
        if self.memory is not None:
            return q, k, v
        if not getattr(self.position, "rotates_cached_keys", False):
            q, k = self.rotate(q, k, layer)
            return q, *self._remember(layer, k, v)
        k, v = self._remember(layer, k, v)
        return self.rotate(q, q, layer)[0], self.rotate(k, k, layer, keys=True)[1], v

    def rotate(self, q: Tensor, k: Tensor, layer: int = 0, *, keys: bool = False) -> tuple[Tensor, Tensor]:
        """q, k (B, H, T, d_head) turned by their positions, if the position does that in this layer."""
        rotate, skips = getattr(self.position, "rotate", None), getattr(self.position, "skips", None)
        if rotate is None or (skips is not None and skips(layer)):
            return q, k
        prepared, plain = (self.prepared_keys, self.k_pos) if keys else (self.prepared, self.q_pos)
        turned: tuple[Tensor, Tensor] = rotate(q, k, plain if prepared is None else prepared)
        return turned

    def as_now(self) -> "Context":
        """This pass as it stands, for layers that go through it a second time: what they say then goes nowhere."""
        copy: Context = object.__new__(Context)
        cross = None if self.cross is None else self.cross.as_now()
        copy.__dict__.update(self.__dict__, cross=cross, record=Record(), _shared=dict(self._shared))
        return copy

    def moved(self, place: Callable[[Tensor], Tensor], dtype: torch.dtype) -> "Context":
        """The same pass with its tokens at other positions: for what layers make of them, not for what they see."""
        q_pos, k_pos, position = place(self.q_pos), place(self.k_pos), self.position
        bias = position.bias(q_pos, k_pos).to(dtype) if self.bias is not None else None
        prepared = None if self.prepared is None else position.prepare(q_pos, dtype, k_pos.amax() + 1)
        return replace(self, q_pos=q_pos, k_pos=k_pos, bias=bias, prepared=prepared, _shared={})

    def _remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(layer, k, v) if self.cache is not None else (k, v)

    @cached_property
    def visible(self) -> Tensor | None:
        """True where a query may look: (T, S) or (B, 1, T, S); None when every key is seen."""
        device, rows = self.q_pos.device, None
        if self.mask == "causal" and self.length > 1:
            q = torch.arange(self.past, self.past + self.length, device=device)
            rows = q[:, None] >= torch.arange(self.key_length, device=device)
            if self.opened is not None:
                rows = rows | self.opened[:, None, None, :]
        if self.segments is None or self.key_segments is None:
            return rows
        same = (self.segments[:, :, None] == self.key_segments[:, None, :])[:, None]
        if self.virtual:
            same = same | (self.key_segments == SHARED)[:, None, None, :]
        if self.memory is not None:  # padding has no state to look at; a softmax over nothing would be NaN
            same = same | ~same.any(-1, keepdim=True)
        return same if rows is None else same & rows

    @cached_property
    def additive(self) -> Tensor | None:
        """Bias and mask in one tensor to be added to the logits: made once a pass, shared by the layers."""
        if self.visible is None or self.bias is None:
            return self.bias
        return self.bias.masked_fill(~self.visible, float("-inf"))


def make_context(
    tokens: Tensor,
    position: Any,
    mask: MaskKind,
    segments: Tensor | None,
    cache: KVCache | None,
    dtype: torch.dtype,
    *,
    opened: Tensor | None = None,
    memory: EncoderOutput | None = None,
    record: Record | None = None,
) -> Context:
    """The context of one pass over `tokens` (B, T), which follow those in `cache`.

    Positions count the tokens of the same document, so that a packed document is what it is alone.
    """
    past, length, device = cache.length if cache is not None else 0, tokens.shape[1], tokens.device
    key_segments = segments
    if cache is not None and (segments is not None or cache.segments is not None):
        before = cache.segments
        if before is None and cache.virtual:
            before = torch.full((len(tokens), past), SHARED, device=device)
            before[:, cache.virtual :] = 0
        key_segments = cache.segments = _extend(before, segments, tokens, past)
        segments = key_segments[:, past:]
    one_document = torch.arange(past + length, device=device)
    virtual = cache.virtual if cache is not None else 0
    k_pos = one_document if key_segments is None else _positions(key_segments, virtual)
    if virtual and opened is not None:
        opened = F.pad(opened, (past, 0), value=True)
    q_pos, record = k_pos[..., past:], record or Record()
    bias = position.bias(q_pos, k_pos).to(dtype) if hasattr(position, "bias") else None
    prepared = prepared_keys = None
    if hasattr(position, "prepare"):
        seen = (
            _lengths(k_pos, key_segments)
            if getattr(position, "rotates_cached_keys", False)
            else k_pos.new_tensor(past + length)
        )
        prepared = position.prepare(q_pos, dtype, seen[..., past:] if seen.dim() else seen)
        prepared_keys = (
            position.prepare(k_pos, dtype, seen) if getattr(position, "rotates_cached_keys", False) else None
        )
    cross = None if memory is None else _cross(q_pos, segments, memory, cache, record)
    return Context(
        mask, q_pos, k_pos, past, position, segments, key_segments, cache, bias, prepared, prepared_keys, opened,
        cross=cross, virtual=virtual, record=record,
    )  # fmt: skip


def _cross(
    q_pos: Tensor, segments: Tensor | None, memory: EncoderOutput, cache: KVCache | None, record: Record
) -> Context:
    """Every token of a document sees all states of its document; positions have no say."""
    batch, length = memory.states.shape[:2]
    k_pos = torch.arange(length, device=q_pos.device)
    if segments is None and memory.segments is not None:  # decoded texts: one document a row
        segments = memory.segments.new_zeros(batch, q_pos.shape[-1])
    key_segments = memory.segments
    if key_segments is None and segments is not None:
        key_segments = segments.new_zeros(batch, length)
    return Context("full", q_pos, k_pos, 0, None, segments, key_segments, cache, memory=memory.states, record=record)


def _lengths(k_pos: Tensor, segments: Tensor | None) -> Tensor:
    """The number of tokens of each token's document: (), or (B, S)."""
    if segments is None:
        return k_pos.new_tensor(k_pos.shape[-1])
    same = (segments[:, :, None] == segments[:, None, :]) | (segments == SHARED)[:, None, :]
    return same.sum(-1)


def _positions(segments: Tensor, virtual: int) -> Tensor:
    """(B, S): those in the documents, each of which begins behind the virtual tokens."""
    found = positions_in_documents(segments)
    return found + virtual * (segments != SHARED) if virtual else found


def _extend(old: Tensor | None, new: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """(B, S): the segments seen, and those of the new tokens; by default these belong to the last one's."""
    batch, length = tokens.shape
    if old is None:
        old = torch.zeros(batch, past, dtype=torch.long, device=tokens.device)
    if new is None:
        last = old[:, -1:] if past else torch.zeros(batch, 1, dtype=old.dtype, device=old.device)
        new = last.expand(batch, length)
    return torch.cat([old, new.to(old)], dim=1)
