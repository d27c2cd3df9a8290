"""Weights of a new model: their initial values, and layers that share them."""

from typing import Any

import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.parameter_roles import describe, named_generator


def share_weights(first: nn.Module, other: nn.Module) -> None:
    """Make two modules share their parameters and buffers, also after either is moved or loaded.

    Plain attributes, such as a layer's number in the cache or its own mask, are not shared. Raises UserError if the
    modules differ in structure.
    """
    pairs = list(zip(first.named_modules(), other.named_modules(), strict=False))
    shapes = [{n: t.shape for n, t in module.state_dict().items()} for module in (first, other)]
    if shapes[0] != shapes[1]:
        raise UserError(
            "layers that share weights must have the same parts, but the parts of these layers differ\n"
            "    try: model.distinct_layers=null"
        )
    for (_, one), (_, two) in pairs:  # share the dicts, as moving or loading a module replaces the tensors in them
        two._parameters, two._buffers = one._parameters, one._buffers


@torch.no_grad()
def initialize(model: nn.Module, init: Any, seed: int) -> None:
    """Initialize each matrix, embedding and head from a generator seeded by (seed, parameter name); biases to 0."""
    for parameter, info in describe(model):
        if parameter.is_meta:
            continue
        if info.role == "vector":
            if info.name.endswith(".bias"):
                parameter.zero_()
            continue
        # In place where possible: otherwise the largest matrix would exist twice for a moment.
        plain = parameter.dtype == torch.float32 and parameter.is_contiguous() and parameter.is_cpu
        weight = parameter.data if plain else torch.empty(parameter.shape, dtype=torch.float32)
        init(weight, info, named_generator(seed, info.name))
        weight.mul_(info.gain)
        if not plain:
            parameter.copy_(weight)
