"""FLOPs that a run does: what a token costs with the weights that train, and how many tokens pass which way."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ablatio.model.build import ModelBuilder
from ablatio.model.context import Record
from ablatio.model.cost.parameters import Hidden, example_of, measure, meta_model, shape_of
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.apply import is_tuned, tune


@dataclass(slots=True)
class Work:
    """Tokens that passed through the model: forward and backward, or forward alone; and those that logits were made at.

    Rows of padding, and passes over held-out data, are not counted.
    """

    learnt: float = 0.0
    read: float = 0.0
    learnt_said: float = 0.0
    read_said: float = 0.0

    @classmethod
    def trained(cls, tokens: float) -> "Work":
        """All tokens are learnt, each has its logits."""
        return cls(learnt=tokens, learnt_said=tokens)

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of one token in a row of the config's length: through the layers and the head, forward and backward.

    Where all weights train the backward pass costs twice the forward one.  Where few do, it is what autograd does on
    the model's shapes: gradients of what it reads down to the lowest weights that train, and of those weights alone.
    """

    layers: float
    layers_backward: float
    head: float
    head_backward: float

    @property
    def train(self) -> float:
        """Of a token that is learnt and has its logits."""
        return self.layers + self.layers_backward + self.head + self.head_backward

    def of(self, work: Work) -> float:
        layers = work.learnt * (self.layers + self.layers_backward) + work.read * self.layers
        return layers + work.learnt_said * (self.head + self.head_backward) + work.read_said * self.head


_COSTS: dict[tuple[str, int], Cost] = {}


def cost_of(
    config: Mapping[str, Any], vocab_size: int, length: int | None = None, model: LanguageModel | None = None
) -> Cost:
    """Of the config's model as it is tuned; length: of a row, by default the config's.

    model: that of the config on the meta device, untuned, where it stands already; it is tuned then.
    """
    if length is not None:
        config = {**config, "data": {**config.get("data", {}), "length": length}}
    key = shape_of(config), vocab_size
    if key not in _COSTS:
        if model is not None:
            measure(config, vocab_size, model)  # before it is tuned
        _COSTS[key] = _cost(config, vocab_size, model)
    return _COSTS[key]


def _cost(config: Mapping[str, Any], vocab_size: int, model: LanguageModel | None) -> Cost:
    if is_tuned(config):
        try:
            return _counted(config, vocab_size, model or meta_model(config, vocab_size))
        except Exception:  # a method may ask for the numbers in its tensors, which shapes do not have
            pass
    size = measure(config, vocab_size)
    head = float(2 * config["model"]["d_model"] * size_of_head(config, vocab_size))
    layers = size.flops_per_token - head
    return Cost(layers, 2 * layers, head, 2 * head)


def size_of_head(config: Mapping[str, Any], vocab_size: int) -> int:
    """Rows of the head's matrix."""
    return int(ModelBuilder(config, vocab_size).dims.vocab_size)


def _counted(config: Mapping[str, Any], vocab_size: int, model: LanguageModel) -> Cost:
    """One row forward and backward on shapes, under torch's counter."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    example, length = example_of(config, vocab_size)
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        tune(model.eval(), config, 0)
        with Hidden(model) as hidden, FlopCounterMode(display=False) as forward:
            states = model.states(example, Record())
        with FlopCounterMode(display=False) as head:
            logits = [model.logits(s) for s in states]
        with FlopCounterMode(display=False) as head_backward:
            learnt = [x for x in logits if x.requires_grad]
            inner = [s for s in states if s.requires_grad]
            weights = [p for p in model.lm_head.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(
                learnt, [*inner, *weights], [torch.ones_like(x) for x in learnt], allow_unused=True
            )
        with FlopCounterMode(display=False) as backward:
            if inner:
                torch.autograd.backward(inner, list(gradients[: len(inner)]))
    layers, below, said, behind = (c.get_total_flops() for c in (forward, backward, head, head_backward))
    below -= 2 * hidden.flops if below else 0
    return Cost(*(flops / length for flops in (layers - hidden.flops, below, said, behind)))
