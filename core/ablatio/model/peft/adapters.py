"""Something learned beside the layers of a frozen model: found by name, attached in place.

Works on any nn.Module; the base's own parameters keep their names, and an adapter's stand below its layer:
`model.layers.0.self_attn.q_proj.adapter.lora_A`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_seed, seeded

ADAPTER = "adapter"
Targets = Annotated[tuple[str, ...], "layers by name (q_proj), by path (*.layers.0.*), or `linear`: every linear map"]


class Adapter(nn.Module):
    """What is learned beside one layer; `forward(layer, x, ...)` takes the place of the layer's own.

    `said(layer, x, ...)` is what the layer says by itself.
    """

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class MatrixAdapter(Adapter):
    """Of a linear map: W becomes `matrix(W)`, b becomes `vector(b)`.

    That is all a method has to say; one that has a cheaper way than making W' in each pass overrides `forward`.
    """

    def matrix(self, weight: Tensor) -> Tensor:
        """W (out, in) -> W' (out, in)."""
        raise NotImplementedError

    def vector(self, bias: Tensor | None) -> Tensor | None:
        return bias

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        weight, bias = weight_of(layer), bias_of(layer)
        return F.linear(x, self.matrix(weight).to(x.dtype), self.vector(bias))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' and b', with which the layer does the same without an adapter."""
        return self.matrix(weight), self.vector(bias)


class LayerPeft:
    """The base of methods that put an adapter beside each target; a method says which: `adapter(layer, path)`.

    targets  a knob of the method: names or patterns
    fits     which layers it can stand beside
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = targets

    def adapter(self, layer: Any, path: str) -> Adapter:
        raise NotImplementedError

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        return is_linear(layer)

    def apply(self, model: nn.Module, seed: int) -> None:
        found = targets_of(model, self.targets, self.fits)
        freeze(model)
        for path, layer in found.items():
            device, dtype = _place(layer)
            with seeded(named_seed(seed, f"{path}.{ADAPTER}")), torch.device(device):
                attach(layer, self.adapter(layer, path).to(dtype).train(layer.training))


def said(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a layer says without its adapter."""
    return type(layer).forward(layer, *args, **kwargs)


def attach(layer: nn.Module, adapter: Adapter) -> None:
    if ADAPTER in layer._modules:
        raise UserError("a layer has an adapter already\n    try: merge the first one into the weights")
    layer.add_module(ADAPTER, adapter)
    layer.forward = functools.partial(adapter.forward, layer)


def freeze(model: nn.Module) -> None:
    """No weight of the model learns."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def adapted(model: nn.Module) -> Iterator[tuple[str, Any, Adapter]]:
    """(path, layer, adapter) of each layer that has one."""
    for path, layer in model.named_modules():
        if isinstance(adapter := layer._modules.get(ADAPTER), Adapter):
            yield path, layer, adapter


def is_linear(layer: nn.Module) -> bool:
    """A linear map: torch's, or GPT-2's Conv1D in transformers, which keeps its matrix transposed."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def weight_of(layer: Any) -> Tensor:
    """The matrix (out, in) of a linear map."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.T


def bias_of(layer: Any) -> Tensor | None:
    bias: Tensor | None = layer.bias
    return bias


def widths(layer: Any) -> tuple[int, int]:
    """(out, in) of a linear map; a quantised weight is not made for that."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return int(layer.weight.shape[1]), int(layer.weight.shape[0])


def targets_of(
    model: nn.Module, wanted: Sequence[str], fits: Callable[[nn.Module], bool] = is_linear
) -> dict[str, nn.Module]:
    """The layers that names or patterns mean, by path.  UserError, with a list of what there is, when one means none.

    A head whose matrix the loss reads (LanguageModel.bare), and one that is tied, cannot take an adapter: whoever reads
    the matrix passes the adapter by.  No head is meant, also where it could.
    """
    there = dict(_candidates(model, fits))
    found: dict[str, nn.Module] = {}
    for pattern in wanted:
        met = {path: layer for path, layer in there.items() if matches(pattern, path)}
        if not met:
            raise UserError(_nothing(pattern, there))
        found |= met
    if not found:
        raise UserError(_nothing("", there))
    return {path: layer for path, layer in there.items() if path in found}


def _candidates(model: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    bare = {f"{path}.{name}".strip(".") for path, m in model.named_modules() for name in getattr(m, "bare", ())}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    find_head: Any = getattr(model, "get_output_embeddings", None)  # of a model of transformers
    head = find_head() if find_head is not None else None
    for path, layer in model.named_modules():
        inside = f".{ADAPTER}." in f".{path}."
        if (
            path
            and fits(layer)
            and path not in bare
            and layer is not head
            and not inside
            and id(layer._parameters.get("weight", ())) not in tables
        ):
            yield path, layer


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern of `targets` means the module at a path."""
    return pattern == "linear" or pattern == path.rpartition(".")[2] or fnmatchcase(path, pattern)


def _nothing(pattern: str, there: dict[str, nn.Module]) -> str:
    counts = Counter(path.rpartition(".")[2] for path in there)
    listed = ", ".join(f"{name} ({n})" for name, n in counts.items()) or "none that this method can stand beside"
    first = next(iter(counts), "")
    return (
        f"peft.targets: {pattern or 'an empty list'} matches no layer of this model; there are {listed}"
        f"\n    try: peft.targets=[{first}]"
    )


def _place(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a layer's weights lie, and their type; codes of a quantised weight say nothing of the type."""
    held = [*layer.parameters(), *layer.buffers()]
    device = held[0].device if held else torch.device("cpu")
    return device, next((t.dtype for t in held if isinstance(t, nn.Parameter)), torch.float32)


def detach(layer: nn.Module) -> None:
    """Take the adapter off a layer."""
    del layer._modules[ADAPTER]
    del layer.forward
