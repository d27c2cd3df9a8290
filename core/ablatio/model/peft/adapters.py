"""Adapters: trainable modules attached in place to layers of a frozen model, which are selected by name.

Works on any nn.Module. The parameters of the base keep their names; those of an adapter are named below its layer:
`model.layers.0.self_attn.q_proj.adapter.lora_A`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_seed, seeded

ADAPTER = "adapter"
Targets = Annotated[tuple[str, ...], "layers by name (q_proj), by path (*.layers.0.*), or `linear`: every linear layer"]
EXPERTS = "experts"  # word of `targets` for all matrices of experts


class Adapter(nn.Module):
    """Base of adapters: `forward(layer, x, ...)` replaces the layer's own forward.

    `said(layer, x, ...)` computes the layer's output without the adapter.

    For methods with the fact `tensor_parallel`, by which a device may have a part of the layer:
    column_parallel  tensors with a row for each output of the layer: a device has those of its outputs
    row_parallel     tensors with a column for each input: a device has those of its inputs; it adds up with the others
    """

    column_parallel: ClassVar[tuple[str, ...]] = ()
    row_parallel: ClassVar[tuple[str, ...]] = ()

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the layer with this adapter; same arguments and result as the layer's forward."""
        raise NotImplementedError


class MatrixAdapter(Adapter):
    """Adapter of a linear layer that replaces W by `matrix(W)` and b by `vector(b)`.

    A method that can compute its output without forming W' in each pass overrides `forward`, too.
    """

    def matrix(self, weight: Tensor) -> Tensor:
        """Adapted weight: W (out, in) -> W' (out, in)."""
        raise NotImplementedError

    def vector(self, bias: Tensor | None) -> Tensor | None:
        """Adapted bias (out,); by default unchanged."""
        return bias

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply the adapted layer: (..., in) -> (..., out)."""
        weight, bias = weight_of(layer), bias_of(layer)
        return F.linear(x, self.matrix(weight).to(x.dtype), self.vector(bias))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W' and b' with which the plain layer gives the same output."""
        return self.matrix(weight), self.vector(bias)


class LayerPeft:
    """Base of PEFT methods that attach an adapter, made by `adapter(layer, path)`, to each target layer.

    targets  a knob of the method: names or patterns of layers
    fits     which layers the method supports
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = targets

    def adapter(self, layer: Any, path: str) -> Adapter:
        """Create the adapter of one layer."""
        raise NotImplementedError

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """True if the method can adapt this layer; by default any linear layer."""
        return is_linear(layer)

    def apply(self, model: nn.Module, seed: int) -> None:
        """Freeze the model and attach an adapter to each target; each is seeded by (seed, its path)."""
        found = targets_of(model, self.targets, self.fits)
        freeze(model)
        for path, layer in found.items():
            device, dtype = _device_and_dtype(layer)
            with seeded(named_seed(seed, f"{path}.{ADAPTER}")), torch.device(device):
                attach(layer, self.adapter(layer, path).to(dtype).train(layer.training))


def said(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Compute a layer's output without its adapter."""
    return type(layer).forward(layer, *args, **kwargs)  # the class's forward: the instance's is the adapter's


def attach(layer: nn.Module, adapter: Adapter) -> None:
    """Attach an adapter to a layer, whose forward it replaces. Raises UserError if the layer has one already."""
    if ADAPTER in layer._modules:
        raise UserError("a layer already has an adapter\n    try: merge the first adapter into the weights")
    layer.add_module(ADAPTER, adapter)
    # An instance attribute hides the class's forward, so the layer keeps its type, name and parameters.
    layer.forward = functools.partial(adapter.forward, layer)


def freeze(model: nn.Module) -> None:
    """Make all parameters of the model untrainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def adapted(model: nn.Module) -> Iterator[tuple[str, Any, Adapter]]:
    """Yield (path, layer, adapter) for each layer with an adapter."""
    for path, layer in model.named_modules():
        if isinstance(adapter := layer._modules.get(ADAPTER), Adapter):
            yield path, layer, adapter


def is_linear(layer: nn.Module) -> bool:
    """True for torch's Linear and for transformers' Conv1D (GPT-2), which stores its matrix transposed."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def is_stacked(layer: nn.Module) -> bool:
    """True for one linear layer for each expert of a mixture: weight (E, out, in), forward(rows, sizes)."""
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dim() == 3 and "fans" in layer.__dict__


def weight_of(layer: Any) -> Tensor:
    """Return the matrix (out, in) of a linear layer, or those of experts (E, out, in)."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) or is_stacked(layer) else weight.T


def bias_of(layer: Any) -> Tensor | None:
    """Return the bias (out,) of a linear layer, or None."""
    bias: Tensor | None = layer.bias
    return bias


def widths(layer: Any) -> tuple[int, int]:
    """Return (out, in) of a linear layer, without dequantizing its weight."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return int(layer.weight.shape[1]), int(layer.weight.shape[0])


def targets_of(
    model: nn.Module, wanted: Sequence[str], fits: Callable[[nn.Module], bool] = is_linear
) -> dict[str, nn.Module]:
    """Find the layers that the names or patterns `wanted` select, by path.

    `experts` selects the matrices of the experts of a mixture, which `linear` leaves out.  Output heads are never
    selected: where the loss reads a head's matrix (LanguageModel.bare) or the matrix is tied,
    an adapter on the head would be bypassed. Raises UserError, with the available layers, if a pattern selects none.
    """
    candidates = dict(_candidates(model, fits))
    found: dict[str, nn.Module] = {}
    for pattern in wanted:
        selected = {path: layer for path, layer in candidates.items() if _selects(pattern, path, layer)}
        if not selected:
            raise UserError(_no_match(pattern, candidates))
        found |= selected
    if not found:
        raise UserError(_no_match("", candidates))
    return {path: layer for path, layer in candidates.items() if path in found}


def _candidates(model: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, layer) of layers that can take an adapter: no heads, no tied matrices, nothing inside an adapter."""
    bare = {f"{path}.{name}".strip(".") for path, m in model.named_modules() for name in getattr(m, "bare", ())}
    # A head that is tied to an embedding shares its matrix, which an adapter on the head would not change.
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    find_head: Any = getattr(model, "get_output_embeddings", None)  # of a transformers model
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
    """True if a pattern of `targets` selects the module at `path`."""
    return pattern == "linear" or pattern == path.rpartition(".")[2] or fnmatchcase(path, pattern)


def _selects(pattern: str, path: str, layer: nn.Module) -> bool:
    """True if a pattern selects the layer: `linear` leaves out the experts of a mixture, `experts` takes them alone."""
    if pattern == EXPERTS or is_stacked(layer):
        return is_stacked(layer) and (pattern == EXPERTS or (pattern != "linear" and matches(pattern, path)))
    return matches(pattern, path)


def _no_match(pattern: str, candidates: dict[str, nn.Module]) -> str:
    counts = Counter(path.rpartition(".")[2] for path in candidates)
    listed = ", ".join(f"{name} ({n})" for name, n in counts.items()) or "none that this method supports"
    first = next(iter(counts), "")
    return (
        f"peft.targets: {pattern or 'an empty list'} matches no layer of this model; available layers: {listed}"
        f"\n    try: peft.targets=[{first}]"
    )


def base_of(layer: Any) -> Any:
    """Return the layer itself, or the layer inside a wrapper of the peft library."""
    return layer.get_base_layer() if "base_layer" in layer._modules else layer


def shares_weights(model: nn.Module, layers: Iterable[Any]) -> bool:
    """True if one of the layers has its weights in common with another module (model.distinct_layers)."""
    users = Counter(id(module._parameters) for module in model.modules())
    return any(users[id(base_of(layer)._parameters)] > 1 for layer in layers)


def _device_and_dtype(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a layer's weights; buffers with quantized codes are ignored for the dtype."""
    held = [*layer.parameters(), *layer.buffers()]
    device = held[0].device if held else torch.device("cpu")
    return device, next((t.dtype for t in held if isinstance(t, nn.Parameter)), torch.float32)


def detach(layer: nn.Module) -> None:
    """Remove the adapter from a layer."""
    del layer._modules[ADAPTER]
    del layer.forward
