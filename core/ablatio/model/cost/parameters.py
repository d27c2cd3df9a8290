"""Exact parameter and FLOP counts, taken from the model built on the meta device: no memory, no arithmetic."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ablatio.model.builder import ModelBuilder, PartChoice
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.on_meta import on_meta
from ablatio.model.parameter_roles import describe, named_generator
from ablatio.model.records import Record
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.value_schedules import settled


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a model.

    parameters       each counted once, also if a head is tied or layers share weights
    embedding        parameters of the token and position tables
    active           parameters that one token uses; fewer than all in a mixture of experts
    flops_per_token  of a forward pass in training at the full length, per token of the text; a multiply-add counts 2

    Attention counts all pairs of tokens, future ones included, as torch's FlopCounter does; a pattern (a window) counts
    only its visible pairs. The backward pass costs twice the forward pass.
    """

    parameters: int
    embedding: int
    active: int
    flops_per_token: float

    @property
    def non_embedding(self) -> int:
        """Parameters outside the token and position tables."""
        return self.parameters - self.embedding

    @property
    def train_flops_per_token(self) -> float:
        """FLOPs per token, forward and backward."""
        return 3 * self.flops_per_token


# Cached because a sweep counts while it plans, and the runs forked from it reuse the counts: this saves half of the
# time before their first step.
_SIZES: dict[tuple[str, int], Size] = {}
_PARAMETERS: dict[tuple[str, int], int] = {}


def measure(config: Mapping[str, Any], vocab_size: int, model: LanguageModel | None = None) -> Size:
    """Measure the model that `config` describes; nothing is allocated, so 176 billion parameters need no memory.

    vocab_size: number of ids of the tokenizer; model: the config's model on the meta device, if it has been built.
    """
    key = shape_of(config), vocab_size
    if key not in _SIZES:
        _SIZES[key] = _measured(config, vocab_size, model or meta_model(config, vocab_size))
        _PARAMETERS[key] = _SIZES[key].parameters
    return _SIZES[key]


def parameters(config: Mapping[str, Any], vocab_size: int) -> int:
    """Count the parameters only, in a fraction of the time."""
    key = shape_of(config), vocab_size
    if key not in _PARAMETERS:
        _PARAMETERS[key] = sum(p.numel() for p in meta_model(config, vocab_size).parameters())
    return _PARAMETERS[key]


def meta_model(config: Mapping[str, Any], vocab_size: int) -> LanguageModel:
    """Build the config's model on the meta device, without activation checkpointing: shapes without values."""
    with on_meta():
        model: LanguageModel = ModelBuilder(json.loads(shape_of(config)), vocab_size).model()
    return model


def row_length(config: Mapping[str, Any]) -> int:
    """Tokens of a row, the longest if they change: `data.length`, or the longest input of the model."""
    found = settled(config.get("data", {})).get("length") or config["model"]["max_len"]
    return int(found)


def shape_of(config: Mapping[str, Any]) -> str:
    """Return everything that sizes and costs depend on, as JSON: the key of the cached counts.

    Of a schedule, the largest value counts.
    """
    kinds_that_count = (r.kind for r in REGISTRIES.values() if r.shapes_model or r.scope == "tuning")
    keys = {"model", "match", "data", "layers", "freeze", *kinds_that_count}
    return json.dumps(settled({k: v for k, v in config.items() if k in keys}), sort_keys=True)


def _measured(config: Mapping[str, Any], vocab_size: int, model: LanguageModel) -> Size:
    from torch.utils.flop_counter import FlopCounterMode

    example, length = example_of(config, vocab_size)
    with on_meta():
        model.eval()
        with Hidden(model) as hidden, FlopCounterMode(display=False) as counter, torch.no_grad():
            model.training_logits(model.states(example, Record()))
    embedding = sum(p.numel() for p, info in describe(model) if info.role == "embedding")
    total = sum(p.numel() for p in model.parameters())
    idle = sum(int(getattr(m, "idle_parameters", 0)) for m in model.modules())
    return Size(total, embedding, total - idle, (counter.get_total_flops() - hidden.flops) / length)


class Hidden:
    """Context manager that sums the FLOPs of masked pairs, `hidden_flops(ctx)`, over all attention calls inside."""

    def __init__(self, model: nn.Module) -> None:
        self.modules, self.flops = [m for m in model.modules() if hasattr(m, "hidden_flops")], 0

    def __enter__(self) -> "Hidden":
        self.hooks = [m.register_forward_hook(self._seen) for m in self.modules]
        return self

    def _seen(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.flops += int(module.hidden_flops(inputs[1]))  # type: ignore[operator]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()


def example_of(config: Mapping[str, Any], vocab_size: int) -> tuple[Example, int]:
    """Return the example that the objective makes of one row of text, on the meta device, and the row's length."""
    length = row_length(config)
    choice = PartChoice.of(config["objective"])
    objective = kinds.objectives.build(choice.name, choice.knobs, vocab_size=vocab_size, eos=0, max_len=length)
    row = torch.ones(1, length + 1, dtype=torch.long)
    made = objective(row, None, named_generator(0, "measure"))
    return made.to("meta"), length
