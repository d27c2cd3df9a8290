"""Merge adapters into the weights and undo it, for ablatio's adapters and for layers of the peft library."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.peft.adapters import Adapter, MatrixAdapter, adapted, attach, bias_of, detach, weight_of


class Merged:
    """Records the layers as they were before `merge`, so that `restore` can undo it bit for bit."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, Adapter, Tensor, Tensor | None]] = []
        self.wrapped: list[tuple[nn.Module, str, nn.Module]] = []

    @torch.no_grad()
    def fold(self, layer: Any, adapter: MatrixAdapter) -> None:
        """Replace a layer's weight and bias by the adapted ones and remove its adapter."""
        weight, bias = adapter.fold(weight_of(layer), bias_of(layer))
        self.held.append((layer, adapter, layer.weight, layer.bias))
        detach(layer)
        weight = (weight if isinstance(layer, nn.Linear) else weight.T).to(layer.weight.dtype).contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @torch.no_grad()
    def unwrap(self, parent: nn.Module, name: str, layer: Any) -> None:
        """Replace a layer of the peft library by the equivalent plain layer; exceptions of peft pass through."""
        merged = copy.deepcopy(layer)  # the original stays untouched: peft's unmerge is not exact
        merged.merge()
        self.wrapped.append((parent, name, layer))
        parent._modules[name] = merged.get_base_layer().requires_grad_(False)

    def restore(self) -> None:
        """Put back all original layers and adapters."""
        for parent, name, layer in self.wrapped:
            parent._modules[name] = layer
        for layer, adapter, weight, bias in self.held:
            layer.weight, layer.bias = weight, bias
            attach(layer, adapter)
        self.held, self.wrapped = [], []


def wrapped_by_peft(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return (parent module, name in it, layer) for each layer that the peft library has wrapped."""
    found = [(path, layer) for path, layer in model.named_modules() if "base_layer" in layer._modules]
    places = [(path.rpartition("."), layer) for path, layer in found]
    return [(model.get_submodule(parent), name, layer) for (parent, _, name), layer in places]


def base_of(layer: Any) -> Any:
    """Return the layer itself, or the layer inside a wrapper of the peft library."""
    return layer.get_base_layer() if "base_layer" in layer._modules else layer


def bare_base(model: nn.Module) -> None:
    """Remove all adapters, wrappers of the peft library and virtual tokens, leaving the base model."""
    for _, layer, _ in list(adapted(model)):
        detach(layer)
    for parent, name, layer in wrapped_by_peft(model):
        parent._modules[name] = base_of(layer)
    for module in model.modules():
        if "virtual" in module._modules:
            module.virtual = None  # type: ignore[assignment]


def merge(model: nn.Module) -> Merged:
    """Merge each adapter into the weights of its layer, giving a model without adapters and with the same output.

    Raises UserError, with the model unchanged, if a method cannot be merged into weights.
    """
    if any("virtual" in m._modules for m in model.modules()):
        raise UserError(
            "this model has virtual tokens before each text, which cannot be merged into weights"
            "\n    try: keep them in a separate folder (ablatio export RUN --adapter DIR)"
        )
    merged = Merged()
    try:
        for path, layer, adapter in list(adapted(model)):
            if "codes" in layer._buffers:
                raise UserError(
                    f"{path} is quantized, so an adapter cannot be merged into it\n    try: dequantize it first"
                )
            if not isinstance(adapter, MatrixAdapter):
                raise UserError(
                    f"{type(adapter).__name__} at {path} is not a change of the weight, so it cannot be merged into it"
                    "\n    try: keep the adapter in a separate folder (ablatio export RUN --adapter DIR)"
                )
            merged.fold(layer, adapter)
        for parent, name, layer in wrapped_by_peft(model):
            try:
                merged.unwrap(parent, name, layer)
            except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"peft's {type(layer).__module__.split('.')[2]} cannot be merged into {name}: {error}"
                    "\n    try: keep the adapter in a separate folder (ablatio export RUN --adapter DIR)"
                ) from error
    except UserError:
        merged.restore()
        raise
    return merged
