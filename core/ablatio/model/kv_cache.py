"""The keys and values that decoding has seen, so that a new token costs one step and not a whole pass."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values per layer: (B, H_kv, S, d_head), in buffers that grow by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self.segments: Tensor | None = None  # (B, S) documents (or padding) of the tokens seen, if there are several
        self.virtual = 0  # tokens at the start that are no text: all documents see them
        self.memory: Any = None  # what an encoder read, for the steps of its decoder
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._states: dict[Hashable, tuple[Tensor, ...]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of `layer` behind the old ones; all of them come back."""
        end = self.length + k.shape[2]
        held = self._buffers.get(layer)
        if held is None or held[0].shape[2] < end:
            held = (_grown(held[0] if held else None, k, end), _grown(held[1] if held else None, v, end))
            self._buffers[layer] = held
        keys, values = (buffer.narrow(2, 0, end) for buffer in held)
        keys.narrow(2, self.length, k.shape[2]).copy_(k)
        values.narrow(2, self.length, k.shape[2]).copy_(v)
        return keys, values

    def update_window(
        self, layer: int, k: Tensor, v: Tensor, window: int, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for a layer that looks back at most `window` tokens: only so many old ones are kept.

        first (B, n)  numbers of tokens that are kept for ever beside them: the start of each text
        The third tensor that comes back says which tokens the keys are of, in rising order: (B, S), from 0.
        """
        end = self.length + k.shape[2]
        index = torch.arange(self.length, end, device=k.device).expand(k.shape[0], -1)
        old = self.state(layer)
        if old is not None:
            k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)
            index = torch.cat([old[2], index], dim=1)
        if first is None:
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
        """Keys and values that do not change while a text is decoded (those of cross-attention): made at the start."""
        held = self._states.get(("once", layer))
        if held is None:
            held = self._states["once", layer] = make()
        return held[0], held[1]

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """What `keep` stored for a layer: tensors whose first axis is the batch; None at the start of a text."""
        return self._states.get(layer)

    def keep(self, layer: int, *state: Tensor) -> None:
        """Store the state of a layer that needs no keys and values (linear attention, a convolution)."""
        self._states[layer] = state

    @property
    def bytes_per_token(self) -> int:
        """What one more token of each text adds; states that `keep` stored stay as large as they are."""
        held = (t for pair in self._buffers.values() for t in pair)
        return sum(t.shape[0] * t.shape[1] * t.shape[3] * t.element_size() for t in held)

    def advance(self, tokens: int) -> None:
        """All layers have stored `tokens` more."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._buffers = {i: (k.index_select(0, rows), v.index_select(0, rows)) for i, (k, v) in self._buffers.items()}
        self._states = {key: tuple(t.index_select(0, rows) for t in state) for key, state in self._states.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]
        if self.memory is not None:
            self.memory = self.memory.select(rows)


class Branching(KVCache):
    """What texts have in common at their start, with its gradients: nothing is written in place.

    Read the starts, `select` for each text the one that it goes on from, and read the texts.
    """

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        held = self._buffers.get(layer)
        if held is not None:
            k, v = torch.cat([held[0], k], dim=2), torch.cat([held[1], v], dim=2)
        self._buffers[layer] = k, v
        return k, v


class Standing(KVCache):
    """Keys and values (H_kv, n, d_head) per layer that stand before texts which are read in one go.

    Nothing is stored behind them, so that gradients flow to them and to the text alike.
    """

    def __init__(self, held: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.held, self.length = held, next(iter(held.values()))[0].shape[-2]
        self.virtual = self.length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        before = (x.to(k.dtype).expand(k.shape[0], -1, -1, -1) for x in self.held[layer])
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))
        return keys, values

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return make()

    def advance(self, tokens: int) -> None:
        pass

    def put_before(self, cache: KVCache, batch: int) -> KVCache:
        """The same at the start of a text that will be decoded token by token."""
        for layer, (k, v) in self.held.items():
            cache.update(layer, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
        cache.advance(self.length)
        cache.virtual = self.length
        return cache


class Recording(KVCache):
    """What each layer makes of a few tokens: keys and values, with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.seen[layer] = k[0], v[0]
        return k, v


def _grown(old: Tensor | None, new: Tensor, need: int) -> Tensor:
    batch, heads, _, width = new.shape
    size = max(need, 64, 2 * old.shape[2] if old is not None else 0)
    buffer = torch.empty(batch, heads, size, width, dtype=new.dtype, device=new.device)
    if old is not None:
        buffer[:, :, : old.shape[2]] = old
    return buffer
