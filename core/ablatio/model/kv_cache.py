"""Caches of keys, values and layer states, so that a new token costs one step instead of a pass over the whole text."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheMark:
    """State of a cache at some length: segments (B, S) and the states that layers store by `keep`."""

    length: int
    segments: Tensor | None
    states: dict[Hashable, tuple[Tensor, ...]]


class KVCache:
    """Keys and values of each layer, (B, H_kv, S, d_head), in buffers that grow by doubling.

    stores  True if a second pass over the same tokens would add their keys once more
    later   tokens after the new ones whose keys and values `update` returns, too: those that other devices compute
    room    tokens for which a buffer is made at once, if it is known how long the texts will be
    filled  (1,): number of cached tokens on the device, in a StaticCache; None: buffers grow, and the host counts
    """

    stores, later = True, 0
    filled: Tensor | None = None
    later_segments: Tensor | None = None  # (B, later)

    def __init__(self, room: int = 0) -> None:
        self.length, self.room = 0, room
        self.segments: Tensor | None = None  # (B, S) document (or padding) of each cached token, if there are several
        self.virtual = 0  # number of virtual tokens at the start, visible to all documents
        self.memory: Any = None  # EncoderOutput for the steps of the decoder
        self.tokens: Tensor | None = None  # (B, S) ids so far, of a model that looks at them again
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._states: dict[Hashable, tuple[Tensor, ...]] = {}
        self._windows: dict[int, int] = {}  # tokens of the window of each layer that keeps no others

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new keys and values of `layer` and return all of them: (B, H_kv, S, d_head) each."""
        end = self.length + k.shape[2]
        held = self._buffers.get(layer)
        if held is None or held[0].shape[2] < end:
            before = held or (None, None)
            held = (_grown(before[0], k, end, self.room), _grown(before[1], v, end, self.room))
            self._buffers[layer] = held
        keys, values = (buffer.narrow(2, 0, end) for buffer in held)
        keys.narrow(2, self.length, k.shape[2]).copy_(k)
        values.narrow(2, self.length, k.shape[2]).copy_(v)
        return keys, values

    def update_window(
        self, layer: int, k: Tensor, v: Tensor, window: int, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append like `update` for a layer with a sliding window: only the last `window` tokens are kept.

        first (B, n): positions of tokens that are never dropped (attention sinks at the start of each text).
        Returns keys, values, and the positions of their tokens in the text, ascending from 0: (B, S).
        """
        end = self.length + k.shape[2]
        index = torch.arange(self.length, end, device=k.device).expand(k.shape[0], -1)
        old = self.state(layer)
        if old is not None:
            k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)  # (B, H_kv, S, d_head)
            index = torch.cat([old[2], index], dim=1)
        if first is None:
            self._windows[layer] = window
            self.keep(layer, k[:, :, -window:].clone(), v[:, :, -window:].clone(), index[:, -window:].clone())
            return k, v, index
        wanted = (index >= end - window) | (index[:, :, None] == first[:, None]).any(-1)
        size = min(window + first.shape[1], index.shape[1])
        kept = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :size].sort().values  # (B, size)
        rows = kept[:, None, :, None]
        keys, values = (x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
        self.keep(layer, keys, values, index.gather(1, kept))
        return k, v, index

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return keys and values that stay fixed during decoding (cross-attention); `make` computes them once."""
        held = self._states.get(("once", layer))
        if held is None:
            held = self._states["once", layer] = make()
        return held[0], held[1]

    def forget_memory(self) -> None:
        """Drop the keys and values of the encoder's states, which have changed: the layers compute them again."""
        self._states = {
            key: held for key, held in self._states.items() if not (isinstance(key, tuple) and "once" in key)
        }

    def state(self, layer: Hashable) -> tuple[Tensor, ...] | None:
        """Return what `keep` stored for `layer`: tensors with the batch first; None at the start of a text.

        A part with a state besides its keys and values names it by another key, such as ("key offset", layer).
        """
        return self._states.get(layer)

    def keep(self, layer: Hashable, *state: Tensor) -> None:
        """Store the state of a layer that does not use keys and values (linear attention, a convolution)."""
        self._states[layer] = state

    @property
    def bytes_per_token(self) -> int:
        """Bytes by which one more token per text enlarges the cache; states stored by `keep` have a fixed size."""
        held = (t for pair in self._buffers.values() for t in pair)
        return sum(t.shape[0] * t.shape[1] * t.shape[3] * t.element_size() for t in held)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, after all layers have stored them."""
        self.length += tokens

    def mark(self) -> CacheMark:
        """Return what `rewind` needs to come back to this length; invalid after `select`."""
        return CacheMark(self.length, self.segments, dict(self._states))

    def rewind(self, mark: CacheMark, kept: int = 0) -> bool:
        """Forget the tokens since the mark, except the first `kept`.

        False if layers store states: these are known at the mark only, so all tokens since are forgotten.
        """
        exact = not any(self._states[key] is not mark.states.get(key) for key in self._states)
        self.length = mark.length + (kept if exact else 0)
        self._states = dict(mark.states)
        if self.segments is not None:
            self.segments = self.segments[:, : self.length]
        return exact

    @property
    def has_states(self) -> bool:
        """True if layers store states, from which no token can be taken out again."""
        return any(not (isinstance(key, tuple) and key[0] == "once") for key in self._states)

    def keep_tokens(self, start: int, kept: Tensor) -> None:
        """Keep all tokens before `start` and of those after it only `kept` (N,), numbers from 0 at `start`."""
        for keys, values in self._buffers.values():
            for buffer in (keys, values):
                buffer[:, :, start : start + len(kept)] = buffer.index_select(2, start + kept)
        self.length = start + len(kept)

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` (N,), in this order; a row may occur several times."""
        self._buffers = {i: (self._selected(k, rows), self._selected(v, rows)) for i, (k, v) in self._buffers.items()}
        self._states = {key: tuple(t.index_select(0, rows) for t in state) for key, state in self._states.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]
        if self.memory is not None:
            self.memory = self.memory.select(rows)
        if self.tokens is not None:
            self.tokens = self.tokens[rows]

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """The rows of a buffer, in one of the same room; only what is filled is copied."""
        chosen = buffer.new_empty(len(rows), *buffer.shape[1:])
        chosen[:, :, : self.length] = buffer[:, :, : self.length].index_select(0, rows)
        return chosen


class SharedPrefixCache(KVCache):
    """Cache of prefixes that several texts share, with gradients: keys and values are never written in place.

    Usage: run the prefixes, `select` the prefix of each text, then run the texts.
    """

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate the new keys and values to the old ones; (B, H_kv, S, d_head) each."""
        held = self._buffers.get(layer)
        if held is not None:
            k, v = torch.cat([held[0], k], dim=2), torch.cat([held[1], v], dim=2)
        self._buffers[layer] = k, v
        return k, v

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        return buffer.index_select(0, rows)


class VirtualTokensCache(KVCache):
    """Keys and values (H_kv, n, d_head) per layer of virtual tokens before texts that are read in a single pass.

    The keys and values of the text are not stored, so gradients flow to the virtual tokens and to the text.
    """

    stores = False

    def __init__(self, held: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.held, self.length = held, next(iter(held.values()))[0].shape[-2]
        self.virtual = self.length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Prepend the virtual keys and values; (B, H_kv, n + T, d_head) each."""
        before = (x.to(k.dtype).expand(k.shape[0], -1, -1, -1) for x in self.held[layer])
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))
        return keys, values

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Compute the keys and values: there is only one pass."""
        return make()

    def advance(self, tokens: int) -> None:
        """Do nothing: the tokens of the text are not stored."""

    def put_before(self, cache: KVCache, batch: int) -> KVCache:
        """Store the virtual tokens in `cache`, at the start of texts that are decoded token by token; return it."""
        for layer, (k, v) in self.held.items():
            cache.update(layer, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
        cache.advance(self.length)
        cache.virtual = self.length
        return cache


class RecordingCache(KVCache):
    """Records the keys and values that each layer computes for a few tokens, with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Record the keys and values of the first batch row; return them unchanged."""
        self.seen[layer] = k[0], v[0]
        return k, v


def _grown(old: Tensor | None, new: Tensor, need: int, room: int) -> Tensor:
    """A buffer for at least `need` tokens, with the content of `old`: (B, H_kv, size, d_head)."""
    batch, heads, _, width = new.shape
    usual = max(64, 2 * old.shape[2] if old is not None else 0)  # doubling: copies cost O(1) per token
    size = max(need, usual) if need > room else room
    buffer = torch.empty(batch, heads, size, width, dtype=new.dtype, device=new.device)
    if old is not None:
        buffer[:, :, : old.shape[2]] = old
    return buffer
