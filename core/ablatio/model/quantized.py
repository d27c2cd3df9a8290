"""Linear maps whose matrix is held in codes of few bits, and made again, some rows at a time, for each product.

The layer stays the object that it was, under its name, with its hooks and its adapter: only its class is another.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ablatio.errors import UserError
from ablatio.model.peft.adapters import targets_of

BLOCK = 2**20  # weights that are made again at once: 4 MB


class Codec(Protocol):
    """A way to write a matrix (out, in) in few bits."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """What is kept of it, `codes` among it."""

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ...) -> Tensor:
        """(rows, width) out of what was kept."""

    def read(self, x: Tensor) -> Tensor:
        """The layer's input as it is multiplied: itself, or rounded too."""


class Coded(nn.Linear):
    """y = decode(codes) x + b.  No gradient reaches the matrix; `weight` makes the whole of it anew."""

    codec: Codec
    coded: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.rows(slice(None))

    def rows(self, part: slice) -> Tensor:
        held = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        return self.codec.decode(held, self.in_features, part)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        size = max(1, BLOCK // self.in_features)
        for start in range(0, self.out_features, size):
            part = slice(start, min(start + size, self.out_features))
            yield part, self.rows(part)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _CodedLinear.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


class _CodedLinear(torch.autograd.Function):
    """Keeps nothing for the backward pass: the matrix is made again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Coded) -> Tensor:
        ctx.layer = layer
        read = layer.codec.read(x)
        y = x.new_empty(*x.shape[:-1], layer.out_features)
        for part, weight in layer.blocks():
            y[..., part] = read @ weight.to(x.dtype).T
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        d_x = grad.new_zeros(*grad.shape[:-1], ctx.layer.in_features)
        for part, weight in ctx.layer.blocks():
            d_x += grad[..., part] @ weight.to(grad.dtype)
        return d_x, None


class Aware(nn.Linear):
    """y = decode(encode(W)) read(x) + b, with the gradients of W x + b: W learns to stand its rounding."""

    codec: Codec

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rounding = self.codec.decode(self.codec.encode(self.weight), self.in_features) - self.weight
            reading = self.codec.read(x) - x
        return F.linear(x + reading, self.weight + rounding.to(x.dtype), self.bias)


@torch.no_grad()
def quantize(model: nn.Module, codec: Codec, *, qat: bool) -> None:
    """Every linear map of the layers; embeddings and the head, whose errors weigh most, stay as they are."""
    found = targets_of(model, ("linear",))
    if other := [path for path, layer in found.items() if not isinstance(layer, nn.Linear)]:
        raise UserError(
            f"{other[0]} is a {type(found[other[0]]).__name__} of another library, which no codes can stand in"
            "\n    try: model=hf model.path=DIR, which reads its folder into layers of ours"
        )
    layers: list[Any] = list(found.values())
    if done := [layer for layer in layers if type(layer) is Coded]:
        raise UserError(
            f"{len(done)} of this model's linear maps are quantised already\n    try: a run with quantization=none"
        )
    for layer in layers:
        if not qat:
            held = codec.encode(layer.weight)
            layer.coded = layer.weight.numel()
            del layer._parameters["weight"]
            for name, tensor in held.items():
                layer.register_buffer(name, tensor)
            if layer.bias is not None:
                layer.bias.requires_grad_(False)
        layer.codec = codec
        layer.__class__ = Aware if qat else Coded


@torch.no_grad()
def dequantize(model: nn.Module) -> None:
    """Plain linear maps again, with the rounded weights."""
    found: list[Any] = [m for m in model.modules() if isinstance(m, Coded | Aware)]
    for layer in found:
        weight = layer.weight
        if isinstance(layer, Aware):
            weight = layer.codec.decode(layer.codec.encode(weight), layer.in_features)
        for name in list(layer._buffers):
            del layer._buffers[name]
        layer.__class__ = nn.Linear
        layer.__dict__.pop("coded", None)
        del layer.codec
        layer.weight = nn.Parameter(weight, requires_grad=False)
