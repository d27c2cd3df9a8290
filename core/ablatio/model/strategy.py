"""Base class of strategies: what one device does, which a strategy for several devices overrides."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.model.device_memory import DeviceMemory
from ablatio.model.example import Loss
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.ranks import Ranks

Build = Callable[[list[ParameterGroup]], torch.optim.Optimizer]


class Pass(nn.Module):
    """One forward pass as a module, so that strategies which hook into `forward` see it: forward(example) -> Loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Loss]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def touch(self) -> None:
        """Do nothing: a call of this module without a forward pass."""

    def forward(self, example: Any) -> Loss:
        """Return the loss of an example."""
        return self._loss(self.model, example)


class Strategy:
    """How the devices of a run share its work.  This class trains on one device.

    ranks  the processes of the run (ablatio.model.ranks.Ranks)

    Order of calls: place once; then for each optimizer step `loss` and `backward` of each batch, scale_gradients,
    gradient_norm, and the optimizer's step.  `gather` and `scatter` are called around checkpoints; `whole_weights`
    around everything that uses the model outside of `loss`.

    A loss is a sum over this rank's rows, divided by a constant that all ranks share; after the last `backward` of a
    step the gradients must be those of the sum over all ranks.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.step_module: nn.Module | None = None

    def place(self, step: Pass) -> None:
        """Distribute `step.model` over the ranks, in place; its parameters keep their names.

        All ranks hold the same weights on their own devices when this is called, once, before the optimizer is built.
        """
        self.step_module = step

    def loss(self, example: Any, last: bool) -> Loss:
        """Return the loss of this rank's rows; last: this is the last batch of the optimizer step."""
        assert self.step_module is not None
        loss: Loss = self.step_module(example)
        return loss

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a loss to those of the step."""
        loss.backward()  # type: ignore[no-untyped-call]

    def optimizer(self, build: Build, groups: list[ParameterGroup], piece: str) -> torch.optim.Optimizer:
        """Build the optimizer for groups of parameters; build(groups) makes it for any tensors of the same layout.

        piece  what it must update together: entry | tensor | model

        Tensors that stand in for a parameter have it as their attribute `stands_for`.
        """
        return build(groups)

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return what steps in place of the optimizer, whose groups have their learning rates now."""
        return optimizer

    def before_update(self) -> None:
        """Hand the optimizer the gradients; called when all that inspects them is done."""

    def after_update(self) -> None:
        """Take the weights from the optimizer."""

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the last step."""
        optimizer.zero_grad()

    def scale_gradients(self, parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
        """Multiply the gradients of the step by a factor."""
        if gradients := [p.grad for p in parameters if p.grad is not None]:  # none: a search without gradients
            torch._foreach_mul_(gradients, factor)

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Euclidean norm of the whole gradient, the same on all ranks."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=not any(g.is_meta for g in gradients))

    def whole_weights(self) -> AbstractContextManager[None]:
        """Context in which every rank holds all weights, so that the model can be called as on one device."""
        return nullcontext()

    def gather(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint as one device would write it; complete on rank 0, all ranks take part."""
        return checkpoint

    def scatter(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return this rank's part of a checkpoint that one device would read."""
        return checkpoint

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """Memory of each device, from that of training on one device, where the optimizer updates such a `piece`.

        Here: the rows of a batch are divided, and with them the activations.
        """
        return replace(one, activations=self.part(one.activations))

    def part(self, count: int) -> int:
        """1 / n of a count, rounded up."""
        return -(-count // self.ranks.world)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of all stacks of a model, each once: the units whose weights a strategy makes whole together."""
    stacks = [m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList)]
    found = [layer for stack in stacks for layer in stack.layers]  # type: ignore[union-attr]
    return [layer for layer in dict.fromkeys(found) if any(True for _ in layer.parameters())]


def keep_rows_whole(model: Any) -> None:
    """Let a model read each prompt with each of its answers, though it could read it once for all of them.

    For strategies that make the weights of a layer whole when the gradient of its output comes: the last layer's output
    for a prompt has none, only the keys and values that the answers use.
    """
    model.shared_prefix = False
