"""Linear layers with quantized weights, dequantized by blocks of rows for each product.

Quantizing changes only the class of a layer: it stays the same object, with its name, hooks and adapter.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ablatio.errors import UserError
from ablatio.model.peft.adapters import targets_of

BLOCK = 2**20  # weights that are dequantized at a time: 4 MB


class Codec(Protocol):
    """A quantization format for matrices (out, in)."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Quantize a matrix; return the tensors to store, among them `codes`.

        A codec that is calibrated takes a second argument, the `InputMoments` of the layer or None.
        """

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ...) -> Tensor:
        """Dequantize some rows of what `encode` returned: (rows, width)."""

    def read(self, x: Tensor) -> Tensor:
        """Return the layer's input as it is multiplied: unchanged, or quantized, too."""


class Coded(nn.Linear):
    """Linear layer y = decode(codes) x + b without a gradient for the matrix; `weight` dequantizes all of it."""

    codec: Codec
    coded: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantized matrix (out, in), computed at each access."""
        return self.rows(slice(None))

    def rows(self, part: slice) -> Tensor:
        """Dequantize some rows of the matrix: (rows, in)."""
        held = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        return self.codec.decode(held, self.in_features, part)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, their dequantized weights) for blocks of about `BLOCK` weights."""
        size = max(1, BLOCK // self.in_features)
        for start in range(0, self.out_features, size):
            part = slice(start, min(start + size, self.out_features))
            yield part, self.rows(part)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) -> (..., out)."""
        y: Tensor = _CodedLinear.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


class _CodedLinear(torch.autograd.Function):
    """Product with a quantized matrix; saves no activations, and the backward pass dequantizes the matrix again."""

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
    """Linear layer for quantization-aware training: y = decode(encode(W)) read(x) + b, straight-through gradients.

    The gradients are those of W x + b.  A codec with the attribute `rounding` applies that share of the rounding error.
    """

    codec: Codec

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with quantized weights: (..., in) -> (..., out)."""
        share = float(getattr(self.codec, "rounding", 1.0))
        if not share:
            return F.linear(x, self.weight, self.bias)
        with torch.no_grad():
            rounding = self.codec.decode(self.codec.encode(self.weight), self.in_features) - self.weight
            reading = self.codec.read(x) - x
            if share != 1.0:
                rounding, reading = share * rounding, share * reading
        return F.linear(x + reading, self.weight + rounding.to(x.dtype), self.bias)


class InputMoments:
    """Moments of the inputs x of a linear layer, summed over the tokens that it has read.

    second    (in, in) sum of x x^T
    absolute  (in,) sum of |x|
    tokens    number of tokens
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.second, self.tokens = torch.zeros(width, width, device=device), 0
        self.absolute = torch.zeros(width, device=device)

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs of one call; a forward pre-hook."""
        rows = inputs[0].detach().flatten(0, -2).float()
        self.second += rows.T @ rows
        self.absolute += rows.abs().sum(0)
        self.tokens += len(rows)


@torch.no_grad()
def moments_of_inputs(model: nn.Module, feed: Callable[[], None]) -> dict[str, InputMoments]:
    """Return the moments of each linear layer's inputs, by its path, while `feed()` runs the model."""
    layers: dict[str, Any] = dict(targets_of(model, ("linear",)))
    found = {path: InputMoments(layer.in_features, layer.weight.device) for path, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(found[path].add) for path, layer in layers.items()]
    training = model.training
    try:
        model.eval()
        feed()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def quantize(
    model: nn.Module, codec: Codec, *, qat: bool = False, moments: Mapping[str, InputMoments] | None = None
) -> None:
    """Quantize every linear layer of the blocks; embeddings and head, whose errors matter most, are left unchanged.

    qat: keep the weights and train them with simulated quantization, instead of replacing them by codes.
    moments: of the inputs of each layer by its path, for a codec that is calibrated; None for others.
    """
    found = targets_of(model, ("linear",))
    if other := [path for path, layer in found.items() if not isinstance(layer, nn.Linear)]:
        raise UserError(
            f"{other[0]} is a {type(found[other[0]]).__name__} of another library, which cannot be quantized here; "
            "expected torch.nn.Linear\n    try: model=hf model.path=DIR, which loads the folder into ablatio's layers"
        )
    layers: dict[str, Any] = dict(found)
    if done := [layer for layer in layers.values() if type(layer) is Coded]:
        raise UserError(
            f"{len(done)} of this model's linear layers are already quantized\n    try: a run with quantization=none"
        )
    tables = set[int]()  # of layers that share their weights (share_weights) the first quantizes for all
    for path, layer in layers.items():
        if not qat:
            if id(layer._parameters) not in tables:
                extra = () if moments is None else (moments.get(path),)
                held = codec.encode(layer.weight, *extra)
                del layer._parameters["weight"]  # the property of `Coded` takes its place
                for name, tensor in held.items():
                    layer.register_buffer(name, tensor)
                tables.add(id(layer._parameters))
                layer.coded = layer.in_features * layer.out_features
            if layer.bias is not None:
                layer.bias.requires_grad_(False)
        layer.codec = codec
        layer.__class__ = Aware if qat else Coded  # the same object: hooks, adapters and references stay valid


@torch.no_grad()
def dequantize(model: nn.Module) -> None:
    """Replace all quantized layers by plain linear layers with the dequantized weights."""
    found: list[Any] = [m for m in model.modules() if isinstance(m, Coded | Aware)]
    weights = dict[int, Tensor]()  # by the table of parameters, which layers may share
    for layer in found:
        if (table := id(layer._parameters)) not in weights:
            weight = layer.weight
            aware = isinstance(layer, Aware)
            weights[table] = layer.codec.decode(layer.codec.encode(weight), layer.in_features) if aware else weight
    for layer in found:
        layer._buffers.clear()
        layer.__class__ = nn.Linear
        layer.__dict__.pop("coded", None)
        del layer.codec
        if id(layer._parameters) in weights:
            layer.weight = nn.Parameter(weights.pop(id(layer._parameters)), requires_grad=False)
