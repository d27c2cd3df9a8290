"""Adapters folded into the weights, and put back: ours, and the layers of the library peft."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.peft.adapters import Adapter, MatrixAdapter, adapted, attach, bias_of, detach, weight_of


class Merged:
    """The layers as they were before `merge`; `restore` puts them back, to the last bit."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, Adapter, Tensor, Tensor | None]] = []
        self.wrapped: list[tuple[nn.Module, str, nn.Module]] = []

    @torch.no_grad()
    def fold(self, layer: Any, adapter: MatrixAdapter) -> None:
        weight, bias = adapter.fold(weight_of(layer), bias_of(layer))
        self.held.append((layer, adapter, layer.weight, layer.bias))
        detach(layer)
        weight = (weight if isinstance(layer, nn.Linear) else weight.T).to(layer.weight.dtype).contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @torch.no_grad()
    def unwrap(self, parent: nn.Module, name: str, layer: Any) -> None:
        """A layer of the library peft becomes the plain one that says the same; raises what peft raises."""
        made = copy.deepcopy(layer)
        made.merge()
        self.wrapped.append((parent, name, layer))
        parent._modules[name] = made.get_base_layer().requires_grad_(False)

    def restore(self) -> None:
        for parent, name, layer in self.wrapped:
            parent._modules[name] = layer
        for layer, adapter, weight, bias in self.held:
            layer.weight, layer.bias = weight, bias
            attach(layer, adapter)
        self.held, self.wrapped = [], []


def wrapped_by_peft(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(module that holds it, its name there, layer) of each layer that the library peft stands around."""
    found = [(path, layer) for path, layer in model.named_modules() if "base_layer" in layer._modules]
    places = [(path.rpartition("."), layer) for path, layer in found]
    return [(model.get_submodule(parent), name, layer) for (parent, _, name), layer in places]


def base_of(layer: Any) -> Any:
    """The layer itself, or what the library peft stands around."""
    return layer.get_base_layer() if "base_layer" in layer._modules else layer


def bare_base(model: nn.Module) -> None:
    """Take off all that a method has put beside the base."""
    for _, layer, _ in list(adapted(model)):
        detach(layer)
    for parent, name, layer in wrapped_by_peft(model):
        parent._modules[name] = base_of(layer)
    for module in model.modules():
        if "virtual" in module._modules:
            module.virtual = None  # type: ignore[assignment]


def merge(model: nn.Module) -> Merged:
    """Fold each adapter into the weights of its layer: a model without adapters that says the same.

    UserError, with the model as it was, where a method has no such weights.
    """
    if any("virtual" in m._modules for m in model.modules()):
        raise UserError(
            "this model has virtual tokens before each text, and no weight can take them in"
            "\n    try: keep them apart (ablatio export RUN --adapter DIR)"
        )
    merged = Merged()
    try:
        for path, layer, adapter in list(adapted(model)):
            if "codes" in layer._buffers:
                raise UserError(f"{path} is quantised, and its codes cannot hold the sum\n    try: dequantise it first")
            if not isinstance(adapter, MatrixAdapter):
                raise UserError(
                    f"{type(adapter).__name__} at {path} computes something of its own: no weight can take it in"
                    "\n    try: keep the adapter apart (ablatio export RUN --adapter DIR)"
                )
            merged.fold(layer, adapter)
        for parent, name, layer in wrapped_by_peft(model):
            try:
                merged.unwrap(parent, name, layer)
            except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"peft's {type(layer).__module__.split('.')[2]} cannot be merged into {name}: {error}"
                    "\n    try: keep the adapter apart (ablatio export RUN --adapter DIR)"
                ) from error
    except UserError:
        merged.restore()
        raise
    return merged
