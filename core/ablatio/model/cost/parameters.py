"""Parameters and FLOPs, exactly: counted on the model itself, without memory or arithmetic."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ablatio.model.build import ModelBuilder, PartChoice
from ablatio.model.context import Record
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import describe, named_generator
from ablatio.registry import kinds

# Sections of a config that no size depends on: runs that differ in these alone are counted once.
ASIDE = (
    "train", "optimizer", "schedule", "stabilizer", "checkpointing", "seed", "seeds", "trainer", "out", "name",
    "source", "sweep",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """parameters: each counted once (a tied head is no second one); embedding: tables for tokens and positions.

    active: parameters that a token passes through, where a layer has experts of which it takes a few.
    flops_per_token: multiply and add are two; of one training step's forward pass at the full length, divided by the
    tokens of the text.  Attention counts all pairs, those with later tokens too, as torch's FlopCounter does; of a
    pattern (a window) only the pairs that it shows.  The backward pass costs twice the forward one.
    """

    parameters: int
    embedding: int
    active: int
    flops_per_token: float

    @property
    def non_embedding(self) -> int:
        return self.parameters - self.embedding

    @property
    def train_flops_per_token(self) -> float:
        return 3 * self.flops_per_token


# A sweep counts while it plans, and the runs that are forked from it find the answers here: half the time that they
# spend before their first step.
_SIZES: dict[tuple[str, int], Size] = {}
_PARAMETERS: dict[tuple[str, int], int] = {}


def measure(config: Mapping[str, Any], vocab_size: int, model: LanguageModel | None = None) -> Size:
    """The size of the model that `config` describes; nothing is allocated, so 176 billion parameters take no room.

    vocab_size: the tokenizer's ids; model: that of the config on the meta device, where it stands already.
    """
    key = shape_of(config), vocab_size
    if key not in _SIZES:
        _SIZES[key] = _measured(config, vocab_size, model or meta_model(config, vocab_size))
        _PARAMETERS[key] = _SIZES[key].parameters
    return _SIZES[key]


def parameters(config: Mapping[str, Any], vocab_size: int) -> int:
    """The parameters alone, in a fraction of the time."""
    key = shape_of(config), vocab_size
    if key not in _PARAMETERS:
        _PARAMETERS[key] = sum(p.numel() for p in meta_model(config, vocab_size).parameters())
    return _PARAMETERS[key]


def meta_model(config: Mapping[str, Any], vocab_size: int) -> LanguageModel:
    """The model of a config on the meta device, without activation checkpointing: shapes without numbers."""
    with torch.device("meta"):
        return ModelBuilder({k: v for k, v in config.items() if k not in ASIDE}, vocab_size).model()


def row_length(config: Mapping[str, Any]) -> int:
    """Tokens of a row: `data.length`, or the longest that the model reads."""
    return int(config.get("data", {}).get("length") or config["model"]["max_len"])


def shape_of(config: Mapping[str, Any]) -> str:
    """All that a size depends on, as a key."""
    return json.dumps({k: v for k, v in config.items() if k not in ASIDE}, sort_keys=True)


def _measured(config: Mapping[str, Any], vocab_size: int, model: LanguageModel) -> Size:
    from torch.utils.flop_counter import FlopCounterMode

    example, length = example_of(config, vocab_size)
    with torch.device("meta"):
        model.eval()
        with Hidden(model) as hidden, FlopCounterMode(display=False) as counter, torch.no_grad():
            for states in model.states(example, Record()):
                model.logits(states)
    embedding = sum(p.numel() for p, info in describe(model) if info.role == "embedding")
    total = sum(p.numel() for p in model.parameters())
    idle = sum(int(getattr(m, "idle_parameters", 0)) for m in model.modules())
    return Size(total, embedding, total - idle, (counter.get_total_flops() - hidden.flops) / length)


class Hidden:
    """Adds up, inside, the FLOPs of pairs that attentions hide from themselves: `hidden_flops(ctx)` of each call."""

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
    """What the objective makes of a row of text, as shapes alone; and the tokens of that row."""
    length = row_length(config)
    choice = PartChoice.of(config["objective"])
    objective = kinds.objectives.build(choice.name, choice.knobs, vocab_size=vocab_size, eos=0, max_len=length)
    row = torch.ones(1, length + 1, dtype=torch.long)
    made = objective(row, None, named_generator(0, "measure"))
    return made.to("meta"), length
