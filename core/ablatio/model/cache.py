"""The keys and values that decoding has seen, so that a new token costs one step and not a whole pass."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values per layer: (B, H_kv, S, d_head), in buffers that grow by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self.segments: Tensor | None = None  # (B, S) documents (or padding) of the tokens seen, if there are several
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of `layer` behind the old ones; all of them come back."""
        end = self.length + k.shape[2]
        held = self._buffers.get(layer)
        if held is None or held[0].shape[2] < end:
            held = (_grown(held[0] if held else None, k, end), _grown(held[1] if held else None, v, end))
            self._buffers[layer] = held
        keys, values = held
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """All layers have stored `tokens` more."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._buffers = {layer: (k[rows], v[rows]) for layer, (k, v) in self._buffers.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]


def _grown(old: Tensor | None, new: Tensor, need: int) -> Tensor:
    batch, heads, _, width = new.shape
    size = max(need, 64, 2 * old.shape[2] if old is not None else 0)
    buffer = torch.empty(batch, heads, size, width, dtype=new.dtype, device=new.device)
    if old is not None:
        buffer[:, :, : old.shape[2]] = old
    return buffer
