"""Memory of a model, counted on shapes alone: weights, gradients, optimizer, activations; and of its decoding cache."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ablatio.errors import UserError
from ablatio.model.activation_checkpointing import observed_storage
from ablatio.model.builder import ModelBuilder, PartChoice
from ablatio.model.cost.meta_tensors import ReadAsOne
from ablatio.model.cost.parameters import example_of
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio.model.on_meta import on_meta
from ablatio.model.parameter_roles import ParameterGroup, Role, groups_by_role
from ablatio.model.records import Record
from ablatio.model.stack import Stack
from ablatio.registry import kinds

SEVERAL = 4  # layers on which activations are counted; deeper models are extrapolated
WIDTH = 4  # bytes of a weight: autocast keeps weights in 32 bits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory in bytes; None: cannot be determined from shapes.

    weights      of the model
    gradients    of the trainable weights
    optimizer    state of the optimizer
    activations  peak of the activations that one row stores for its backward pass, at 32 bits
    beside       weights of further models, such as a reference
    """

    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None
    beside: int = 0

    @property
    def lasting(self) -> int:
        """Memory held throughout training, without activations; an unknown optimizer state counts as 0."""
        return self.weights + self.gradients + (self.optimizer or 0) + self.beside


def memory_of(
    config: Mapping[str, Any],
    vocab_size: int,
    tune: Callable[[LanguageModel], object] | None = None,
    copies: int = 0,
) -> MemoryEstimate:
    """Estimate the memory of training with 32-bit weights; nothing is allocated.

    tune: applies a PEFT method to the model; copies: number of further models of the same size (a reference)
    """
    with on_meta():
        model = ModelBuilder(config, vocab_size).model()
        if tune is not None:
            tune(model)
    held = {id(t): t for t in (*model.parameters(), *(model.buffers() if tune else ()))}.values()
    weights = sum(t.numel() * t.element_size() for t in held)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    state = _optimizer(model, PartChoice.of(config["optimizer"]))
    segment = max(int(getattr(m.run, "segment", 0)) for m in model.modules() if isinstance(m, Stack))
    activations = _activations(config, vocab_size, segment)
    return MemoryEstimate(weights, gradients, state, activations, copies * weights)


def _optimizer(model: LanguageModel, choice: PartChoice) -> int | None:
    """Bytes of the optimizer's state after one step; parameters of the same role and shape are counted once."""
    shapes = Counter((group["role"], tuple(p.shape)) for group in groups_by_role(model) for p in group["params"])
    try:
        with FakeTensorMode(), ReadAsOne():
            return sum(count * _state(choice, role, shape) for (role, shape), count in shapes.items())
    except Exception as error:  # an optimizer may read values of its tensors, which fake tensors do not have
        log.warning("the memory of optimizer=%s is unknown: %s", choice.name, error)
        return None


def _state(choice: PartChoice, role: Role, shape: tuple[int, ...]) -> int:
    """Bytes of the optimizer's state for one parameter, after one step."""
    parameter = nn.Parameter(torch.empty(shape))
    groups: list[ParameterGroup] = [{"params": [parameter], "role": role, "rate": 1.0}]
    optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups)
    parameter.grad = torch.empty(shape)
    optimizer.step()
    held = (value for state in optimizer.state.values() for value in state.values())
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))


def _activations(config: Mapping[str, Any], vocab_size: int, segment: int) -> int | None:
    """Peak bytes of the activations of one row; with checkpointing, one recomputed segment is added.

    Deep models are extrapolated linearly from few layers; if layers differ, this is their average.
    """
    layers, several = int(config["model"]["n_layers"]), SEVERAL * max(1, segment)
    try:
        if layers <= 2 * several:
            kept: float = _saved(config, vocab_size, layers)
        else:
            few, more = (_saved(config, vocab_size, n) for n in (several, 2 * several))
            kept = few + (more - few) * (layers - several) / several
        if segment:
            whole = {**config, "checkpointing": None}  # inside a recomputed segment, everything is stored
            few, more = (_saved(whole, vocab_size, n) for n in (SEVERAL, 2 * SEVERAL))
            kept += (more - few) * min(segment, layers) / SEVERAL
    except Exception as error:  # an operation of a plugin may not support fake tensors
        log.warning("the memory of the activations is unknown: %s", error)
        return None
    return round(kept)


_known: ContextVar[dict[str, int] | None] = ContextVar("counted activations", default=None)


@contextmanager
def activations_counted_once() -> Iterator[None]:
    """Count the activations of equal models once: those of deep models follow from the same few layers."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def _saved(config: Mapping[str, Any], vocab_size: int, layers: int) -> int:
    """Bytes that autograd saves in a forward pass of so many layers over one row."""
    model_config = {**config["model"], "n_layers": layers}
    if model_config.get("encoder_layers") is not None:
        model_config["encoder_layers"] = layers
    small, known = {**config, "model": model_config}, _known.get()
    if known is None:
        return _saved_by(small, vocab_size)
    text = json.dumps([small, vocab_size])
    if text not in known:
        known[text] = _saved_by(small, vocab_size)
    return known[text]


def _saved_by(config: Mapping[str, Any], vocab_size: int) -> int:
    """Bytes that autograd saves in a forward pass over one row; each storage is counted once."""
    example, _ = example_of(config, vocab_size)
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # kept alive, so that no later storage gets the same address
        return tensor

    with on_meta():
        model = ModelBuilder(config, vocab_size).model().train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}  # saved, too, but counted elsewhere
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        given = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
        tensors = {name: t for name, t in given.items() if isinstance(t, Tensor)}
        blank: dict[str, Any] = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in tensors.items()}
        example = dataclasses.replace(example, **blank)
        model = model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), observed_storage() as stored:
            model.states(example, Record())
            for tensor in stored():
                pack(tensor)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def decoding_cache(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """Bytes that one more token of a text adds to the cache, at 32 bits; states of fixed size are not counted.

    None for an encoder, and where shapes do not determine it.
    """
    cache = KVCache()
    try:
        with torch.no_grad(), on_meta():
            model = ModelBuilder(config, vocab_size).model().eval()
            model.read(torch.zeros(1, 1, dtype=torch.long), None, cache)
    except UserError:  # an encoder cannot decode
        return None
    except Exception as error:  # an operation of a plugin may not support meta tensors
        log.warning("the memory of the decoding cache is unknown: %s", error)
        return None
    return cache.bytes_per_token
