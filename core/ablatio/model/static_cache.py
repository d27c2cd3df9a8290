"""A cache of fixed size: each decoded token runs the same operations, on the same shapes and at the same addresses."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from ablatio.model.example import positions_after
from ablatio.model.kv_cache import KVCache


class NotStaticError(Exception):
    """A decoding step depends on the number of cached tokens in another way than by tensors on the device."""


class HiddenLength:
    """The number of cached tokens inside a static step, where the host must not read it: every use raises."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotStaticError("the host reads the number of cached tokens")

    __index__ = __int__ = __float__ = __bool__ = __neg__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = _refuse
    __hash__ = object.__hash__


class StaticCache(KVCache):
    """Keys and values of `room` tokens, of which the first `filled` are there: a step hides the rest by a mask.

    filled  (1,): number of cached tokens, on the device; outside of a step `length` is the same number
    k_pos   (room,) or (B, room): positions of all tokens; those to come continue the last document

    Made from the cache of texts that have been read, whose buffers it shares if they have this room.  Tokens are
    appended one at a time, and none can be taken out again.  States of layers are changed in place.  The keys of a
    window stand in a ring, in which a token takes the place of the one that leaves.  `fill` is what the places hold
    that no token has filled: with another fill, a part that reads them gives another result.
    """

    filled: Tensor

    def __init__(self, cache: KVCache, room: int, device: torch.device, fill: float = 0.0) -> None:
        super().__init__(room)
        self.length, self.virtual, self.memory, self.tokens = cache.length, cache.virtual, cache.memory, cache.tokens
        self._buffers = {
            layer: (_placed(k, self.length, room, fill), _placed(v, self.length, room, fill))
            for layer, (k, v) in cache._buffers.items()
        }
        self._states = {
            key: state if _lasts(key) else tuple(t.clone() for t in state) for key, state in cache._states.items()
        }
        self._windows = {layer: min(window, room) for layer, window in cache._windows.items()}
        for layer, size in self._windows.items():
            self._states[layer] = _ring(cache._states[layer], size, fill)
        self.filled = torch.full((1,), self.length, device=device)
        self.k_pos = torch.arange(room, device=device)
        if cache.segments is not None:
            to_come = cache.segments[:, -1:].expand(-1, room - self.length)
            self.segments = torch.cat([cache.segments, to_come], dim=1)  # (B, room)
            self.k_pos = positions_after(self.segments, self.virtual)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of one step, in which the length is hidden from the host."""
        length, self.length = self.length, HiddenLength()  # type: ignore[assignment]
        try:
            yield
        finally:
            self.length = length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one token; return the buffers, (B, H_kv, room, d_head) each."""
        held = self._buffers.get(layer)
        if held is None or k.shape[2] != 1:
            raise NotStaticError(f"layer {layer} stores {k.shape[2]} tokens at once, or had none in the prompt")
        for buffer, new in zip(held, (k, v), strict=True):
            buffer.index_copy_(2, self.filled, new.to(buffer.dtype))
        return held

    def update_window(
        self, layer: int, k: Tensor, v: Tensor, window: int, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Store the keys and values of one token in the ring of the layer; return the ring.

        Returns keys, values, and positions of their tokens in the text, in the order of the ring: (B, window).  A place
        that no token has filled has the position of the one that will.
        """
        if min(window, self.room) != self._windows.get(layer):
            raise NotStaticError(f"the window of layer {layer} keeps the first tokens, too, or changes")
        keys, values, index = self._states[layer]
        place = self.filled % index.shape[1]
        for ring, new in ((keys, k), (values, v)):
            ring.index_copy_(2, place, new.to(ring.dtype))
        index.index_copy_(1, place, self.filled.expand(len(index), 1))
        return keys, values, index

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return keys and values that stay fixed during decoding; the prompt's pass has made them."""
        keys, values = self._states["once", layer]
        return keys, values

    def keep(self, layer: Hashable, *state: Tensor) -> None:
        """Write the new state of a layer over the old one.  Raises NotStaticError if its shape changes."""
        held = self._states.get(layer, ())
        if [(t.shape, t.dtype) for t in held] != [(t.shape, t.dtype) for t in state]:
            raise NotStaticError(f"the state of {layer} changes its shape with each token")
        for old, new in zip(held, state, strict=True):
            old.copy_(new)

    def advance(self, tokens: int) -> None:
        """Count a token on the device; the host counts it by `length`."""
        self.filled.add_(tokens)

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` (N,), in this order: at new addresses."""
        super().select(rows)
        if self.segments is not None:
            self.k_pos = self.k_pos[rows]

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        return buffer.index_select(0, rows)

    def restorer(self) -> Callable[[], None]:
        """Return a function that brings back what is cached now, after steps that are not to count."""
        states = {key: [t.clone() for t in state] for key, state in self._states.items() if not _lasts(key)}
        filled = self.filled.clone()

        def restore() -> None:
            self.filled.copy_(filled)
            for key, state in states.items():
                for held, before in zip(self._states[key], state, strict=True):
                    held.copy_(before)

        return restore

    def growing(self) -> KVCache:
        """A cache that grows, with what this one holds, whose buffers it shares."""
        cache = KVCache(self.room)
        cache.length, cache.virtual, cache.memory, cache.tokens = self.length, self.virtual, self.memory, self.tokens
        cache._buffers, cache._states, cache._windows = dict(self._buffers), dict(self._states), dict(self._windows)
        for layer in self._windows:
            cache._states[layer] = _in_order(self._states[layer], self.length)
        cache.segments = None if self.segments is None else self.segments[:, : self.length]
        return cache


def rounded_room(tokens: int) -> int:
    """Room for so many tokens, a multiple of 8: a GPU's kernels would pad masks of other widths in each step."""
    return -(-tokens // 8) * 8


def _placed(buffer: Tensor, length: int, room: int, fill: float) -> Tensor:
    """A buffer of `room` tokens with the first `length` of this one: (B, H_kv, room, d_head)."""
    placed = buffer
    if buffer.shape[2] != room:
        placed = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
        placed[:, :, :length] = buffer[:, :, :length]
    placed[:, :, length:] = fill  # not left empty: a probability of 0 times NaN would be NaN
    return placed


def _ring(window: tuple[Tensor, ...], size: int, fill: float) -> tuple[Tensor, ...]:
    """Keys, values and positions (B, n) of a text's last tokens in a ring of `size` places: token i at i % size."""
    *keys_values, index = window
    held = index[0] % size  # (n,): windows of rows do not differ
    places = torch.arange(size, device=index.device).expand(len(index), -1).clone().index_copy_(1, held, index)
    rings = (x.new_full((*x.shape[:2], size, x.shape[3]), fill).index_copy_(2, held, x) for x in keys_values)
    return (*rings, places)


def _in_order(ring: tuple[Tensor, ...], length: int) -> tuple[Tensor, ...]:
    """Undo `_ring`, of a text of `length` tokens."""
    *keys_values, index = ring
    order = index[0].argsort()[: min(length, index.shape[1])]  # places that are not filled come last
    return (*(x.index_select(2, order) for x in keys_values), index.index_select(1, order))


def _lasts(key: Hashable) -> bool:
    """True for the keys and values of an encoder, which no step changes."""
    return isinstance(key, tuple) and key[0] == "once"
