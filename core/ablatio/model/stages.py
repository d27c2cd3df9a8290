"""A model cut into stages, each with some consecutive layers: what a device computes and which tensors it holds."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.context import Context
from ablatio.model.example import Example, Loss, joined
from ablatio.model.language_model import total_weight
from ablatio.model.records import Record
from ablatio.model.strategy import Pass

Place = tuple[nn.Module, str]


def layer_ranges(layers: int, stages: int) -> list[range]:
    """Layers of each stage, as equal as possible; the last stages, which have the output head, have the fewer."""
    edges = [-(-layers * i // stages) for i in range(stages + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]


class Stage(nn.Module):
    """The layers of one stage as a function of the states that the stage before has made: (B, ...) -> same.

    The first stage makes the embeddings, whatever its input; the last returns the loss of its rows, (1,).  An auxiliary
    loss of a layer gets its gradient on the stage of the layer.

    step    module that returns the loss of an example with the whole model (ablatio.model.strategy.Pass)
    number  of this stage, from 0, of `count`

    `feed` gives the examples, one for each call of `forward`; `taken` is what these calls have found.
    """

    def __init__(self, step: Pass, number: int, count: int) -> None:
        super().__init__()
        model: Any = step.model
        self.step, self.model, self.stack = step, model, model.model
        self.own = layer_ranges(len(self.stack.layers), count)[number]
        self.first, self.last = number == 0, number == count - 1
        held = [p for p in step.parameters() if p.is_floating_point() and not p.is_meta]
        self.dtype, self.device = held[0].dtype, held[0].device  # of the states between stages
        self.examples: Iterator[Example] = iter(())
        self.taken: list[Loss] = []
        self.autocast: dict[str, Any] = {"enabled": False}

    def feed(self, examples: Sequence[Example]) -> None:
        """Compute these next: parts of one batch, whose rows have one length once they are joined."""
        self.examples, self.taken = iter(examples), []
        kind = self.device.type
        self.autocast = {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the next example, with the autocast that was on when `feed` was called."""
        with torch.autocast(self.device.type, **self.autocast):
            return self._computed(x, next(self.examples))

    def _computed(self, x: Tensor, example: Example) -> Tensor:
        with self._cut(x):
            if self.last:
                loss: Loss = self.step(example)
                self.taken.append(Loss(loss.total.detach(), loss.weight, loss.measures))
                return torch.stack([loss.total])
            record = Record()
            states: Tensor = self.model.states_of(joined(example), record)
        states = states.to(self.dtype)
        weight = total_weight(example, states)
        losses = {name: value.detach() for name, value in record.losses.items()}
        carried = [value * weight for value in record.losses.values()]  # per target, as the model's loss adds them
        total = sum(carried, torch.zeros((), device=states.device))
        self.taken.append(Loss(total.detach(), weight, record.measures | losses))
        return _Carry.apply(states, total) if total.requires_grad else states  # type: ignore[no-untyped-call]

    @contextmanager
    def _cut(self, x: Tensor) -> Iterator[None]:
        """Context in which the model's stack computes this stage, once, from the states x."""
        calls = itertools.count()

        def forward(tokens: Tensor, segments: Tensor | None = None, cache: Any = None, **given: Any) -> Tensor:
            if next(calls) or cache is not None or given.get("memory") is not None:
                raise UserError(
                    "the loss of this task and objective needs more than one pass of the model, and devices that "
                    "divide the layers make one\n    try: strategy=ddp"
                )
            return self._through(x, tokens, segments, given.get("opened"), given.get("record") or Record())

        self.stack.forward = forward
        try:
            yield
        finally:
            del self.stack.forward

    def _through(
        self, x: Tensor, tokens: Tensor, segments: Tensor | None, opened: Tensor | None, record: Record
    ) -> Tensor:
        stack = self.stack
        rows = stack.embed_tokens(tokens) if self.first else x
        contexts = stack.contexts(tokens, segments, None, rows.dtype, opened, None, record)
        if self.first:
            x = stack.begin(stack.enter(rows, tokens, contexts[0]), contexts[0])
        own = range(self.own.start, self.own.stop - 1) if self.last else self.own
        x = stack.between(x, contexts, own)
        if self.last:
            x = stack.finish(x, contexts, record)
        _refuse_crossing(contexts)
        return x

    def states_like(self, example: Example) -> Tensor:
        """Tensor on the meta device, of the shape of the states between stages for this example."""
        one = torch.zeros(1, 1, self.stack.d_model, device=self.device, dtype=self.dtype)
        stream = one if self.stack.stream is None else self.stack.stream.open(one)
        return torch.empty(*joined(example).tokens.shape, *stream.shape[2:], device="meta", dtype=self.dtype)


class _Carry(torch.autograd.Function):
    """Return the states; backward: the gradient of the states, and 1 for the loss."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], ctx.one


def _refuse_crossing(contexts: Sequence[Context]) -> None:
    """Raise UserError if a layer has left something for other layers, which may stand on other devices."""
    if any(ctx.handed_on for ctx in contexts):
        raise UserError(
            "a part hands something from layer to layer (`ctx.passed_on`), and devices that divide the layers send "
            "the residual stream alone; its fact `splits_layers` must be False\n    try: strategy=ddp"
        )


def microbatches_of(example: Example, count: int) -> list[Example]:
    """Cut a batch into `count` parts with equally many rows, which divide; joined rows keep their length."""
    rows = len(example.inputs) // count
    return [example.part(slice(i * rows, (i + 1) * rows)) for i in range(count)]


@dataclass(slots=True)
class Held:
    """A tensor of a model, the places where modules have it, and the stages that use it, in order."""

    tensor: Tensor
    places: list[Place] = field(default_factory=list)
    stages: tuple[int, ...] = ()

    @property
    def trained(self) -> bool:
        """True for a parameter that is trained."""
        return isinstance(self.tensor, nn.Parameter) and self.tensor.requires_grad

    @property
    def now(self) -> Tensor:
        """The tensor that the modules have: a buffer may have been replaced."""
        module, name = self.places[0]
        found = module._parameters.get(name)
        return module._buffers[name] if found is None else found  # type: ignore[return-value]

    def put(self, tensor: Tensor) -> None:
        """Put another tensor in all places."""
        for module, name in self.places:
            (module._parameters if name in module._parameters else module._buffers)[name] = tensor  # type: ignore[assignment]

    def without_numbers(self) -> Tensor:
        """A tensor on the meta device in its place."""
        return self.like(torch.empty_like(self.tensor, device="meta"))

    def like(self, tensor: Tensor) -> Tensor:
        """The tensor as a parameter, if this is one."""
        is_parameter = isinstance(self.tensor, nn.Parameter)
        return nn.Parameter(tensor.detach(), self.tensor.requires_grad) if is_parameter else tensor


def held_by_stages(model: nn.Module, count: int) -> list[Held]:
    """The tensors of a model, each once, with the stages that use them, in an order that all devices share.

    A matrix that head and embedding share is used by the first stage and the last.  What is in no layer and has no
    known place, such as a table of positions that all layers read, is used by all stages.
    """
    found: dict[int, Held] = {}
    known = _known_places(model, count)
    for path, module in model.named_modules(remove_duplicate=False):
        stages = next((known[prefix] for prefix in _prefixes(path) if prefix in known), range(count))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                held = found.setdefault(id(tensor), Held(tensor))
                held.places.append((module, name))
                held.stages = tuple(sorted({*held.stages, *stages}))
    return [*found.values()]


def forget_others(held: Sequence[Held], number: int) -> list[Held]:
    """Put tensors without numbers in the place of those that a stage does not use, and return these.

    Names and shapes stay those of the whole model.
    """
    absent = [one for one in held if number not in one.stages]
    for one in absent:
        one.tensor = one.without_numbers()
        one.put(one.tensor)
        for module, _ in one.places:
            _stay_where_it_is(module)
    return absent


def _stay_where_it_is(module: nn.Module) -> None:
    """Let the tensors of a module stay on the meta device when the model is moved, which torch refuses without data."""

    def apply(change: Any, recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(change)  # type: ignore[no-untyped-call]
        return module

    module._apply = apply  # type: ignore[method-assign]


def _prefixes(path: str) -> Iterator[str]:
    """The path of a module and those of the modules around it, the longest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _known_places(model: Any, count: int) -> dict[str, Sequence[int]]:
    """Stages by the path of a module: of layers, and of what stands before and after them."""
    last = count - 1
    known: dict[str, Sequence[int]] = {
        f"model.layers.{layer}": [number]
        for number, own in enumerate(layer_ranges(len(model.model.layers), count))
        for layer in own
    }
    known |= {f"model.{name}": [0] for name in ("embed_tokens", "embedding", "embed_norm", "embedded")}
    known |= {f"model.{name}": [last] for name in ("norm", "shortcut", "further")}
    return known | {name: [last] for name in ("lm_head", "project_out", "logit_map", "further_heads")}
