"""Context of one forward pass, shared by all layers: positions, mask, position bias, cache."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.example import SHARED, positions_after
from ablatio.model.kv_cache import KVCache
from ablatio.model.number_format import precise
from ablatio.model.position_bias import Bias, bias_of
from ablatio.model.records import Record, Store
from ablatio.model.static_cache import HiddenLength, NotStaticError, StaticCache

MaskKind = Literal["causal", "full"]
T = TypeVar("T")


@dataclass(slots=True)
class EncoderOutput:
    """Output of an encoder for its decoder: states (B, S, D), and the document (B, S) of each token.

    readers (B, T)  which of these documents each new token of the decoder attends to; None: the one it stands in
    """

    states: Tensor
    segments: Tensor | None = None
    readers: Tensor | None = None

    def select(self, rows: Tensor) -> "EncoderOutput":
        """Return the batch rows `rows` (N,)."""
        segments, readers = (None if x is None else x[rows] for x in (self.segments, self.readers))
        return EncoderOutput(self.states[rows], segments, readers)


@dataclass(frozen=True)
class Context:
    """One pass over T new tokens that attend to S = past + T keys; in cross-attention, to S states of the encoder.

    If other devices compute the later tokens of a row, those of an encoder are among the keys: S = past + T + later.

    q_pos, k_pos            (T,), (S,) or (B, T), (B, S): positions of queries and keys in their documents
    segments, key_segments  (B, T), (B, S): documents; tokens see only their own; None: one document per row
    logit_bias              the position's bias on the attention logits; `bias` is that of all pairs
    opened                  (B, S): True for tokens that their whole document sees, earlier tokens too (a prefix)
    prepared, prepared_keys passed to the position's `rotate` instead of q_pos, k_pos, if the position prepares them
    memory                  (B, S, D): encoder states for keys and values in cross-attention; None in self-attention
    virtual                 number of virtual tokens at the start of the keys
    tokens                  (B, T): ids of the new tokens; None for embeddings that belong to no token
    cross                   context of the cross-attention, in a decoder that has an encoder
    tree                    (T, T): True where a new token sees another, if they are a tree of continuations of one text
    filled                  (1,): number of cached tokens in a static step, whose keys are the whole buffers of the
                            cache: those after the new token are hidden; `past` and `key_length` cannot be read
    """

    mask: MaskKind
    q_pos: Tensor
    k_pos: Tensor
    past: int
    position: Any
    segments: Tensor | None = None
    key_segments: Tensor | None = None
    cache: KVCache | None = None
    logit_bias: Bias | None = None
    prepared: Any = None
    prepared_keys: Any = None
    opened: Tensor | None = None
    memory: Tensor | None = None
    cross: "Context | None" = None
    tree: Tensor | None = None
    virtual: int = 0
    tokens: Tensor | None = None
    filled: Tensor | None = None
    record: Record = field(default_factory=Record)
    _shared: Store = field(default_factory=Store)
    _passed_on: Store = field(default_factory=Store)

    @property
    def length(self) -> int:
        """Number T of new tokens."""
        return self.q_pos.shape[-1]

    @property
    def key_length(self) -> int:
        """Number S of keys."""
        if self.filled is not None:
            raise NotStaticError("the host reads the number of keys")
        return self.k_pos.shape[-1]

    @property
    def begins(self) -> bool:
        """True if no token is cached."""
        return self.filled is None and self.past == 0

    @property
    def bias(self) -> Tensor | None:
        """The position's bias on the attention logits, (H, T, S) or (B, H, T, S); None if it has none."""
        return None if self.logit_bias is None else self.logit_bias.dense

    @property
    def is_causal(self) -> bool:
        """True if the plain causal mask is exact: no bias, one document, no prefix, empty cache."""
        plain = self.logit_bias is None and self.segments is None and self.opened is None and self.tree is None
        return self.mask == "causal" and plain and self.begins

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a scalar to the training loss, in nats per target (it is multiplied by the number of targets)."""
        self._add(self.record.losses, name, value)

    def measure(self, name: str, value: Tensor) -> None:
        """Record a number for the log; values are summed over layers, so divide by their number to log a mean."""
        self._add(self.record.measures, name, value.detach())

    @staticmethod
    def _add(to: dict[str, Tensor], name: str, value: Tensor) -> None:
        to[name] = to[name] + value if name in to else value

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is derived from this context for `key`: the first layer computes it, the others reuse it.

        Layers with another position encoding have a context of their own, and so another value.
        """
        return self._shared.once(key, make)

    def passed_on(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what one layer hands on to later ones for `key`, such as a skip; the first to ask makes it."""
        return self._passed_on.once(key, make)

    @property
    def handed_on(self) -> bool:
        """True if a layer has left something through `passed_on`, `hand_values` or `hand_inputs` in this pass."""
        return bool(self._passed_on.values)

    def hand_values(self, layer: int, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Let the attention of a layer change its values: (v, x) -> v, (B, T, H_kv * d_head), x its input (B, T, D)."""
        self._passed_on.values["values", layer] = change

    def with_values(self, layer: int, v: Tensor, x: Tensor) -> Tensor:
        """Return the projected values v (B, T, H_kv * d_head) of x as a shortcut changes them; v itself without one."""
        change: Callable[[Tensor, Tensor], Tensor] | None = self._passed_on.values.get(("values", layer))
        return v if change is None else change(v, x)

    def hand_inputs(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Let the attention of a layer compute its keys and values from k and v (B, T, D), not from its input."""
        self._passed_on.values["inputs", layer] = k, v

    def inputs(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a layer's attention computes keys and values from, (B, T, D) each: x, if nothing was handed."""
        found: tuple[Tensor, Tensor] = self._passed_on.values.get(("inputs", layer), (x, x))
        return found

    def keys_values(
        self, layer: int, x: Tensor, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H_kv, S, d_head) of x, or in cross-attention of the encoder states.

        With a cache, those of the encoder states are computed once per decoded text.
        """
        if self.memory is None:
            return project(x)
        if self.cache is None:
            return project(self.memory)
        return self.cache.once(layer, lambda: project(self.memory))  # type: ignore[arg-type]

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate q and k by their positions and append k and v to the cache.

        Returns q (B, H, T, d_head) and the keys and values of all tokens so far, (B, H_kv, S, d_head) each. Positions
        with `rotates_cached_keys` store unrotated keys and rotate all of them in each pass.
        """
        if self.memory is not None:
            return q, k, v
        if not getattr(self.position, "rotates_cached_keys", False):
            q, k = self.rotate(q, k, layer)
            return q, *self._remember(layer, k, v)
        k, v = self._remember(layer, k, v)
        return self.rotate(q, q, layer)[0], self.rotate(k, k, layer, keys=True)[1], v

    def rotate(self, q: Tensor, k: Tensor, layer: int = 0, *, keys: bool = False) -> tuple[Tensor, Tensor]:
        """Rotate q and k (B, H, T, d_head) by their positions, if the position does so in this layer."""
        rotate, skips = getattr(self.position, "rotate", None), getattr(self.position, "skips", None)
        if rotate is None or (skips is not None and skips(layer)):
            return q, k
        prepared, plain = (self.prepared_keys, self.k_pos) if keys else (self.prepared, self.q_pos)
        turned: tuple[Tensor, Tensor] = rotate(q, k, plain if prepared is None else prepared)
        return turned

    def snapshot(self) -> "Context":
        """Copy this context for recomputing layers; auxiliary outputs of the recomputation are discarded."""
        copy: Context = object.__new__(Context)
        cross = None if self.cross is None else self.cross.snapshot()
        copy.__dict__.update(self.__dict__, cross=cross, record=Record(), _shared=self._shared.copy())
        copy.__dict__.update(_passed_on=self._passed_on.copy())
        return copy

    def with_position(self, position: Any, dtype: torch.dtype) -> "Context":
        """Return the context of the layers that have another position encoding."""
        bias, prepared, prepared_keys = _of_position(
            position, self.q_pos, self.k_pos, self.key_segments, self.past, dtype, self.filled
        )
        return replace(
            self, position=position, logit_bias=bias, prepared=prepared, prepared_keys=prepared_keys, _shared=Store()
        )

    def moved(self, place: Callable[[Tensor], Tensor], dtype: torch.dtype) -> "Context":
        """Return this context with other positions, as given by `place`; the mask does not change."""
        q_pos, k_pos, position = place(self.q_pos), place(self.k_pos), self.position
        bias = None if self.logit_bias is None else bias_of(position, q_pos, k_pos, dtype)
        prepared = None if self.prepared is None else position.prepare(q_pos, precise(dtype), k_pos.amax() + 1)
        return replace(self, q_pos=q_pos, k_pos=k_pos, logit_bias=bias, prepared=prepared, _shared=Store())

    def _remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(layer, k, v) if self.cache is not None else (k, v)

    @cached_property
    def visible(self) -> Tensor | None:
        """Mask, True where a query may attend: (T, S) or (B, 1, T, S); None: every key is visible."""
        device, rows = self.q_pos.device, None
        if self.tree is not None:
            rows = F.pad(self.tree, (self.past, 0), value=True)
        elif self.filled is not None:
            rows = torch.arange(self.k_pos.shape[-1], device=device) <= self.filled[:, None]  # (1, S)
        elif self.mask == "causal" and self.length > 1:
            q = torch.arange(self.past, self.past + self.length, device=device)
            rows = q[:, None] >= torch.arange(self.key_length, device=device)
            if self.opened is not None:
                rows = rows | self.opened[:, None, None, :]
        if self.segments is None or self.key_segments is None:
            return rows
        same = (self.segments[:, :, None] == self.key_segments[:, None, :])[:, None]
        if self.virtual:
            same = same | (self.key_segments == SHARED)[:, None, None, :]
        if self.memory is not None:  # padding belongs to no document: a softmax over no key would be NaN
            same = same | ~same.any(-1, keepdim=True)
        return same if rows is None else same & rows

    @cached_property
    def additive(self) -> Tensor | None:
        """Bias and mask as one tensor that is added to the logits; computed once per pass, shared by the layers."""
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
    tree: Tensor | None = None,
) -> Context:
    """Build the context of one pass over `tokens` (B, T), which follow those in `cache`.

    Positions are counted within each document, so a packed document gives the same output as alone.  In a tree of
    continuations, the position of a token is that in its own continuation.
    """
    if isinstance(cache, StaticCache):
        return _static_context(tokens, position, mask, cache, dtype, memory, record or Record())
    past, length, device = cache.length if cache is not None else 0, tokens.shape[1], tokens.device
    key_segments = segments
    if cache is not None and (segments is not None or cache.segments is not None):
        before = cache.segments
        if before is None and cache.virtual:
            before = torch.full((len(tokens), past), SHARED, device=device)
            before[:, cache.virtual :] = 0  # tokens without segments so far: one document
        key_segments = cache.segments = _extend(before, segments, tokens, past)
        segments = key_segments[:, past:]
        if cache.later_segments is not None:
            key_segments = torch.cat([key_segments, cache.later_segments.to(key_segments)], dim=1)
    one_document = torch.arange(past + length + (cache.later if cache is not None else 0), device=device)  # (S,)
    if tree is not None:  # depth of each token: number of its ancestors
        one_document = torch.cat([one_document[:past], past + tree.sum(1) - 1])
    virtual = cache.virtual if cache is not None else 0
    k_pos = one_document if key_segments is None else positions_after(key_segments, virtual)
    if virtual and opened is not None:
        opened = F.pad(opened, (past, 0), value=True)  # virtual tokens are visible to all
    q_pos, record = k_pos[..., past : past + length], record or Record()
    bias, prepared, prepared_keys = _of_position(position, q_pos, k_pos, key_segments, past, dtype)
    cross = None if memory is None else _cross(q_pos, segments, memory, cache, record)
    return Context(
        mask, q_pos, k_pos, past, position, segments, key_segments, cache, bias, prepared, prepared_keys, opened,
        cross=cross, virtual=virtual, tokens=tokens, record=record, tree=tree,
    )  # fmt: skip


def _static_context(
    tokens: Tensor,
    position: Any,
    mask: MaskKind,
    cache: StaticCache,
    dtype: torch.dtype,
    memory: EncoderOutput | None,
    record: Record,
) -> Context:
    """Build the context of one token for each row, (B, 1), which follows those in `cache`: the same for each token."""
    filled, key_segments = cache.filled, cache.segments
    q_pos = cache.k_pos.index_select(-1, filled)
    segments = None if key_segments is None else key_segments.index_select(1, filled)
    past: Any = HiddenLength()
    bias, prepared, prepared_keys = _of_position(position, q_pos, cache.k_pos, key_segments, past, dtype, filled)
    cross = None if memory is None else _cross(q_pos, segments, memory, cache, record)
    return Context(
        mask, q_pos, cache.k_pos, past, position, segments, key_segments, cache, bias, prepared, prepared_keys,
        cross=cross, virtual=cache.virtual, tokens=tokens, record=record, filled=filled,
    )  # fmt: skip


def _of_position(
    position: Any,
    q_pos: Tensor,
    k_pos: Tensor,
    key_segments: Tensor | None,
    past: int,
    dtype: torch.dtype,
    filled: Tensor | None = None,
) -> tuple[Bias | None, Any, Any]:
    """(bias on the logits, what `rotate` gets for queries, and for cached keys) of a position encoding."""
    bias = bias_of(position, q_pos, k_pos, dtype) if hasattr(position, "bias") else None
    if not hasattr(position, "prepare"):
        return bias, None, None
    late, dtype = getattr(position, "rotates_cached_keys", False), precise(dtype)
    seen = _lengths(k_pos, key_segments, filled) if late else k_pos.new_full((), k_pos.shape[-1])
    own = seen
    if seen.dim():
        own = seen[..., past:] if filled is None else seen.index_select(-1, filled)
    return bias, position.prepare(q_pos, dtype, own), position.prepare(k_pos, dtype, seen) if late else None


def _cross(
    q_pos: Tensor, segments: Tensor | None, memory: EncoderOutput, cache: KVCache | None, record: Record
) -> Context:
    """Context of cross-attention: each token sees all encoder states of its document; no position encoding."""
    batch, length = memory.states.shape[:2]
    k_pos = torch.arange(length, device=q_pos.device)
    segments = segments if memory.readers is None else memory.readers
    if segments is None and memory.segments is not None:  # decoding: the target is one document per row
        segments = memory.segments.new_zeros(batch, q_pos.shape[-1])
    key_segments = memory.segments
    if key_segments is None and segments is not None:
        key_segments = segments.new_zeros(batch, length)
    return Context("full", q_pos, k_pos, 0, None, segments, key_segments, cache, memory=memory.states, record=record)


def _lengths(k_pos: Tensor, segments: Tensor | None, filled: Tensor | None) -> Tensor:
    """Length of each token's document, of the tokens that are there: (B, S), or () if there is one document."""
    if segments is None:
        return k_pos.new_full((), k_pos.shape[-1]) if filled is None else filled[0] + 1
    same = (segments[:, :, None] == segments[:, None, :]) | (segments == SHARED)[:, None, :]
    if filled is not None:
        same = same & (torch.arange(k_pos.shape[-1], device=k_pos.device) <= filled)
    return same.sum(-1)


def _extend(old: Tensor | None, new: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """Segments of cached and new tokens: (B, S); by default new tokens continue the last token's document."""
    batch, length = tokens.shape
    if old is None:
        old = torch.zeros(batch, past, dtype=torch.long, device=tokens.device)
    if new is None:
        last = old[:, -1:] if past else torch.zeros(batch, 1, dtype=old.dtype, device=old.device)
        new = last.expand(batch, length)
    return torch.cat([old, new.to(old)], dim=1)
