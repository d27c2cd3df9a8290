"""FLOPs of a run: cost of a token, given which weights are trained, times the tokens processed in each way."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ablatio.model.builder import ModelBuilder
from ablatio.model.cost.parameters import Hidden, example_of, measure, meta_model, shape_of
from ablatio.model.language_model import LanguageModel
from ablatio.model.on_meta import on_meta
from ablatio.model.peft.apply import trains_all, tune
from ablatio.model.records import Record
from ablatio.registry.kinds import checkpointings

FEW = 2  # layers, or segments of them, on which recomputation is counted

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Work:
    """Numbers of tokens processed, without padding and passes over held-out data.

    learnt, read            tokens through the layers: forward and backward, forward only
    learnt_said, read_said  tokens at which logits were computed, likewise
    """

    learnt: float = 0.0
    read: float = 0.0
    learnt_said: float = 0.0
    read_said: float = 0.0

    @classmethod
    def trained(cls, tokens: float) -> "Work":
        """Work of plain training: forward and backward with logits at every token."""
        return cls(learnt=tokens, learnt_said=tokens)

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs per token of the layers and of the head, forward and backward, in rows of the config's length.

    If all weights are trained, the backward pass costs twice the forward pass. With PEFT it is counted on the model's
    shapes as autograd runs it: gradients of activations down to the lowest trained weights, and of those weights.
    """

    layers: float
    layers_backward: float
    head: float
    head_backward: float

    @property
    def train(self) -> float:
        """FLOPs of one training token, logits included."""
        return self.layers + self.layers_backward + self.head + self.head_backward

    def of(self, work: Work) -> float:
        """Total FLOPs of `work`."""
        layers = work.learnt * (self.layers + self.layers_backward) + work.read * self.layers
        return layers + work.learnt_said * (self.head + self.head_backward) + work.read_said * self.head


def interpolated(cost: Callable[[int], Cost], count: int, most: int) -> list[Cost]:
    """Costs number 0 to count - 1; of more than `most`, some are computed and the others interpolated linearly."""
    if count <= most:
        return [cost(i) for i in range(count)]
    nodes = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
    known = [[getattr(cost(i), f.name) for f in fields(Cost)] for i in nodes]
    columns = [np.interp(np.arange(count), nodes, column) for column in zip(*known, strict=True)]
    return [Cost(*map(float, row)) for row in zip(*columns, strict=True)]


_COSTS: dict[tuple[str, int], Cost] = {}


def cost_of(
    config: Mapping[str, Any], vocab_size: int, length: int | None = None, model: LanguageModel | None = None
) -> Cost:
    """Compute the cost of the config's model, with its PEFT method.

    length: tokens per row, default the config's.
    model: the config's model on the meta device, without its PEFT method, if it has been built; it is tuned here.
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
    if not trains_all(config):
        try:
            return _counted(config, vocab_size, model or meta_model(config, vocab_size))
        except Exception as error:  # a method may read values of its tensors, which meta tensors do not have
            log.warning("FLOPs are those of training all weights, as counting the trained ones failed: %s", error)
    size = measure(config, vocab_size)
    head = head_flops(config, vocab_size)
    layers = size.flops_per_token - head
    return Cost(layers, 2 * layers, head, 2 * head)


def head_flops(config: Mapping[str, Any], vocab_size: int) -> float:
    """Return the FLOPs of the logits of one token; a tied token table that is narrower adds its projection."""
    builder = ModelBuilder(config, vocab_size)
    d_model, rows = builder.dims.d_model, builder.dims.vocab_size
    with on_meta():
        width = getattr(builder.embedding(), "width", d_model) if builder.dims.tied else d_model
    return float(2 * width * (rows + (d_model if width != d_model else 0)))


def recomputed_flops(config: Mapping[str, Any], vocab_size: int) -> float | None:
    """FLOPs per token that checkpointing recomputes in the backward pass; 0 without it, None if it cannot be counted.

    Counted as the difference of a training pass with and without it; of deep models, on few layers and extrapolated.
    """
    if checkpointings.is_default(config.get("checkpointing") or {"name": checkpointings.default}):
        return 0.0
    layers = int(config["model"]["n_layers"])
    segment = max(1, int((config["checkpointing"] or {}).get("segment") or 1))
    several = FEW * segment

    def again(depth: int) -> float:
        sizes = {**config["model"], "n_layers": depth}
        if sizes.get("encoder_layers") is not None:
            sizes["encoder_layers"] = depth
        small = {**config, "model": sizes}
        return _pass_flops(small, vocab_size) - _pass_flops({**small, "checkpointing": None}, vocab_size)

    try:
        if layers <= 2 * several:
            return again(layers)
        few, more = again(several), again(2 * several)
        return few + (more - few) * (layers - several) / several
    except Exception as error:  # an operation of a plugin may not support fake tensors
        log.warning("the FLOPs of recomputation are unknown: %s", error)
        return None


def _pass_flops(config: Mapping[str, Any], vocab_size: int) -> float:
    """FLOPs per token of the layers, forward and backward, with what is recomputed, on tensors without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    example, length = example_of(config, vocab_size)
    with on_meta():
        model = ModelBuilder(config, vocab_size).model().train()
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        given = {f.name: getattr(example, f.name) for f in fields(example)}
        tensors = {name: t for name, t in given.items() if isinstance(t, torch.Tensor)}
        blank: dict[str, Any] = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in tensors.items()}
        example = replace(example, **blank)
        model = model.to_empty(device="cpu")
        with FlopCounterMode(display=False) as counter:
            states = model.states(example, Record())
            torch.autograd.backward(states, [torch.ones_like(s) for s in states])
    return float(counter.get_total_flops()) / length


def _counted(config: Mapping[str, Any], vocab_size: int, model: LanguageModel) -> Cost:
    """Count the FLOPs of one row, forward and backward, with torch's counter on meta tensors."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    example, length = example_of(config, vocab_size)
    # The math backend consists of matrix products, whose forward and backward passes the counter sees.
    with on_meta(), sdpa_kernel(SDPBackend.MATH):
        tune(model.eval(), config, 0)
        with Hidden(model) as hidden, FlopCounterMode(display=False) as forward:
            states = model.states(example, Record())
        # Cut off from the layers, so that the gradient of a tied head does not run through them to the embedding.
        cut = [s.detach().requires_grad_(s.requires_grad) for s in states]
        with FlopCounterMode(display=False) as head:
            logits = model.training_logits(cut)
        with FlopCounterMode(display=False) as head_backward:
            differentiable = [x for x in logits if x.requires_grad]
            inner = [s for s in cut if s.requires_grad]  # empty if nothing below the head is trained
            heads = (model.lm_head, model.further_heads)
            weights = [p for head in heads for p in head.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(
                differentiable,
                [*inner, *weights],
                [torch.ones_like(x) for x in differentiable],
                allow_unused=True,
            )
        with FlopCounterMode(display=False) as backward:
            if inner:
                torch.autograd.backward([s for s in states if s.requires_grad], list(gradients[: len(inner)]))
    in_layers, in_backward, in_head, in_head_backward = (
        c.get_total_flops() for c in (forward, backward, head, head_backward)
    )
    in_backward -= 2 * hidden.flops if in_backward else 0  # the backward pass of masked pairs costs twice the forward
    counts = (in_layers - hidden.flops, in_backward, in_head, in_head_backward)
    return Cost(*(flops / length for flops in counts))
