"""Merge adapters into the weights and undo it, for ablatio's adapters and for layers of the peft library."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.peft.adapters import (
    Adapter,
    MatrixAdapter,
    adapted,
    attach,
    base_of,
    bias_of,
    detach,
    is_stacked,
    shares_weights,
    weight_of,
)


class Merged:
    """Records the layers as they were before `merge`, so that `restore` can undo it bit for bit.

    unshared  True if layers that shared their weights have weights of their own now, because their adapters differ
    """

    def __init__(self) -> None:
        self.held: list[tuple[Any, Adapter, dict[str, nn.Parameter | None]]] = []
        self.wrapped: list[tuple[nn.Module, str, nn.Module]] = []
        self.unshared = False

    @torch.no_grad()
    def fold(self, pairs: Sequence[tuple[Any, MatrixAdapter]]) -> None:
        """Replace weight and bias of each layer by the adapted ones and remove its adapter.

        All are computed before the first is replaced: layers may share their weights, and an adapter is a change of
        the weight that all of them had.
        """
        folded = [(layer, adapter, adapter.fold(weight_of(layer), bias_of(layer))) for layer, adapter in pairs]
        for layer, adapter, (weight, bias) in folded:
            before = layer._parameters
            self.held.append((layer, adapter, before))
            detach(layer)
            layer._parameters = dict(before)  # not in place: another layer may use the same dict (share_weights)
            straight = isinstance(layer, nn.Linear) or is_stacked(layer)
            weight = (weight if straight else weight.T).to(layer.weight.dtype).contiguous()
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
        for layer, adapter, parameters in self.held:
            layer._parameters = parameters
            attach(layer, adapter)
        self.held, self.wrapped, self.unshared = [], [], False


def wrapped_by_peft(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return (parent module, name in it, layer) for each layer that the peft library has wrapped."""
    found = [(path, layer) for path, layer in model.named_modules() if "base_layer" in layer._modules]
    places = [(path.rpartition("."), layer) for path, layer in found]
    return [(model.get_submodule(parent), name, layer) for (parent, _, name), layer in places]


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
    if any(m._modules.get("virtual") is not None for m in model.modules()):
        raise UserError(
            "this model has virtual tokens before each text, which cannot be merged into weights"
            "\n    try: keep them in a separate folder (ablatio export RUN --adapter DIR)"
        )
    merged = Merged()
    wrapped = wrapped_by_peft(model)
    merged.unshared = shares_weights(model, [*(m for _, m, _ in adapted(model)), *(m for _, _, m in wrapped)])
    pairs = list[tuple[Any, MatrixAdapter]]()
    try:
        for path, layer, adapter in adapted(model):
            if "codes" in layer._buffers:
                raise UserError(
                    f"{path} is quantized, so an adapter cannot be merged into it\n    try: dequantize it first"
                )
            if not isinstance(adapter, MatrixAdapter):
                raise UserError(
                    f"{type(adapter).__name__} at {path} is not a change of the weight, so it cannot be merged into it"
                    "\n    try: keep the adapter in a separate folder (ablatio export RUN --adapter DIR)"
                )
            pairs.append((layer, adapter))
        merged.fold(pairs)
        for parent, name, layer in wrapped:
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


@torch.no_grad()
def unshare(model: nn.Module) -> None:
    """Give each layer its own copy of the weights that it shares with others, as in a model without distinct_layers."""
    for tables in ("_parameters", "_buffers"):
        seen = set[int]()
        for module in model.modules():
            table = getattr(module, tables)
            if table and id(table) in seen:
                setattr(module, tables, {name: None if t is None else copy.deepcopy(t) for name, t in table.items()})
            seen.add(id(table))
