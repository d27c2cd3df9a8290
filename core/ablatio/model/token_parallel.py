"""Context parallelism: the tokens of each row, divided over devices.

Device r has the tokens from T r / n on, and computes them as the continuation of those before: as decoding does with a
cache, but the keys and values of earlier tokens come from the devices that have them (all-gather; Llama 3,
arXiv:2407.21783, section 3.3.2).  In an encoder they come from later tokens, too.  In the backward pass the gradients
of keys and values go back to their devices.
"""

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class TokenDevices:
    """The devices that divide the tokens of each row.

    count, index  number of devices, and which of them this one is
    gather        the tensors of all devices, which have one shape, in order
    total         sum of a tensor over the devices, without a gradient
    """

    count: int
    index: int
    gather: Callable[[Tensor], list[Tensor]]
    total: Callable[[Tensor], Tensor]

    def sizes(self, length: int) -> list[int]:
        """Tokens of each device, of `length`.  Raises UserError if there are fewer tokens than devices."""
        if length < self.count:
            raise UserError(
                f"{self.count} devices divide rows of {length} tokens, and each needs one\n    try: strategy=ddp"
            )
        edges = [length * i // self.count for i in range(self.count + 1)]
        return [end - start for start, end in itertools.pairwise(edges)]

    def joined(self, x: Tensor, sizes: list[int], last: int) -> Tensor:
        """The tokens of the devices up to number `last`: (B, H, own, d) -> (B, H, all of these, d)."""
        found: Tensor = _Joined.apply(x, self, sizes, last)  # type: ignore[no-untyped-call]
        return found


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, devices: TokenDevices, sizes: list[int], last: int) -> Tensor:
        ctx.devices, ctx.sizes = devices, sizes
        pieces = devices.gather(F.pad(x, (0, 0, 0, max(sizes) - x.shape[2])).contiguous())
        used = zip(pieces[: last + 1], sizes, strict=False)
        return torch.cat([piece[:, :, :size] for piece, size in used], dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sizes, devices, (gradient,) = ctx.sizes, ctx.devices, gradients
        whole = F.pad(gradient, (0, 0, 0, sum(sizes) - gradient.shape[2]))  # later tokens are not seen
        start = sum(sizes[: devices.index])
        return devices.total(whole)[:, :, start : start + sizes[devices.index]], None, None, None


class GatheredCache(KVCache):
    """Keys and values of the tokens of the other devices; nothing is stored."""

    stores = False

    def __init__(self, devices: TokenDevices, sizes: list[int], segments: Tensor | None, *, causal: bool) -> None:
        """`segments` (B, T): documents of the whole rows, if they have several; causal: later tokens are not seen."""
        super().__init__()
        self.devices, self.sizes = devices, sizes
        self.last = devices.index if causal else devices.count - 1  # device of the last token that is seen
        self.length = sum(sizes[: devices.index])
        self.later = sum(sizes[devices.index + 1 : self.last + 1])
        self.segments = None if segments is None else segments[:, : self.length]
        self.later_segments = None if segments is None else segments[:, segments.shape[1] - self.later :]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of the other tokens before and after those of this device."""
        return self.devices.joined(k, self.sizes, self.last), self.devices.joined(v, self.sizes, self.last)

    def update_window(
        self, layer: int, k: Tensor, v: Tensor, window: int, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All keys: the pattern of the layer hides those outside of its window."""
        keys, values = self.update(layer, k, v)
        return keys, values, torch.arange(keys.shape[2], device=k.device).expand(len(k), -1)

    def state(self, layer: Hashable) -> tuple[Tensor, ...] | None:
        """Raise RuntimeError: states of earlier tokens are not known."""
        raise RuntimeError(
            f"{layer} asks for a state of earlier tokens, and `splits_tokens` declares that its part has none"
        )

    def keep(self, layer: Hashable, *state: Tensor) -> None:
        """Raise RuntimeError, see `state`."""
        self.state(layer)

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Raise RuntimeError, see `state`."""
        raise RuntimeError(f"layer {layer} attends to an encoder, whose tokens are not divided")


class DividedTokens:
    """Lets the stack of a decoder or an encoder alone read the tokens of one device while a loss is computed."""

    def __init__(self, stack: nn.Module, devices: TokenDevices) -> None:
        self.devices, self.causal = devices, stack.mask == "causal"
        self._cache: GatheredCache | None = None
        stack.register_forward_pre_hook(self._with_cache, with_kwargs=True)

    def _with_cache(self, stack: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, (kwargs if self._cache is None else {**kwargs, "cache": self._cache})

    def run(self, example: Example, loss: Callable[[Example], Any]) -> Any:
        """Return the loss of this device's tokens."""
        assert example.source is None, "a source is not divided"
        sizes, index = self.devices.sizes(example.inputs.shape[1]), self.devices.index
        start = sum(sizes[:index])
        self._cache = GatheredCache(self.devices, sizes, example.segments, causal=self.causal)
        try:
            return loss(example.columns(slice(start, start + sizes[index])))
        finally:
            self._cache = None
