"""The kind `strategy`: how the devices of one run share its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from ablatio.model.device_memory import DeviceMemory
    from ablatio.model.example import Loss


class Strategy(Protocol):
    """How the devices of one run share its work; inherits from `ablatio.model.strategy.Strategy`, which is one device.

    The base class documents each method and the order of calls; a part overrides those that it needs.

    Wiring:
    ranks     the processes of the run, one per device (ablatio.model.ranks.Ranks)

    Methods:
    place(step)               distribute the model over the ranks, in place
    loss(example, last)       the loss of this rank's rows
    backward(loss, last)      after the last one of a step, gradients are those of the sum over all ranks
    optimizer(build, groups, piece)  build the optimizer, which updates pieces of this size: entry | tensor | model
    wrap(optimizer)           what steps in its place
    before_update()           hand the optimizer the gradients
    after_update()            take the weights from the optimizer
    zero_grad(optimizer)      drop the gradients of the last step
    scale_gradients(parameters, factor)  multiply all gradients
    gradient_norm(parameters)  Euclidean norm of the whole gradient, the same on all ranks
    whole_weights()           context in which the ranks can call the model as one device does, all with the same inputs
    gather(checkpoint)        from the parts of the ranks to the checkpoint of one device, complete on rank 0
    scatter(checkpoint)       this rank's part of the checkpoint of one device
    memory(one, piece)        memory of each device, from that of one device (ablatio.model.device_memory.DeviceMemory)

    Facts:
    several   True if it trains on more than one device
    splits    what a device has less of than the whole: rows (of a batch) | heads (and features of each layer) | tokens
              (of each row) | layers.  Devices that split something else than rows have all rows, or those of their
              group; those that split heads draw the same random numbers
    grouped_by  knob that says how many devices make a group, which has rows of its own; null in it, or no knob: those
              that split heads or layers are one group, and each other one is a group
    shards    True if a device holds a part of the weights between passes
    engine    True if gradients stay inside a library, so that no part can read them as `p.grad`
    updates   the largest piece that it updates together: entry | tensor | model.  An optimizer that needs a larger one
              (its fact `updates`) is refused

    Losses after any step, weights and checkpoints must be those of one device up to rounding; what it cannot do exactly
    must be refused by a rule.
    """

    several: ClassVar[bool]
    splits: ClassVar[str]
    grouped_by: ClassVar[str]
    shards: ClassVar[bool]
    engine: ClassVar[bool]
    updates: ClassVar[str]

    def place(self, step: nn.Module) -> None: ...

    def loss(self, example: Any, last: bool) -> Loss: ...

    def backward(self, loss: Tensor, last: bool) -> None: ...

    def optimizer(
        self, build: Callable[[Any], torch.optim.Optimizer], groups: Any, piece: str
    ) -> torch.optim.Optimizer: ...

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer: ...

    def before_update(self) -> None: ...

    def after_update(self) -> None: ...

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None: ...

    def scale_gradients(self, parameters: Sequence[nn.Parameter], factor: Tensor) -> None: ...

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor: ...

    def whole_weights(self) -> AbstractContextManager[None]: ...

    def gather(self, checkpoint: dict[str, Any]) -> dict[str, Any]: ...

    def scatter(self, checkpoint: dict[str, Any]) -> dict[str, Any]: ...

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory: ...


STRATEGY_METHODS = (  # all are defined by the base class
    "place", "loss", "backward", "optimizer", "wrap", "scale_gradients", "gradient_norm", "before_update",
    "after_update", "zero_grad", "whole_weights", "gather", "scatter", "memory",
)  # fmt: skip

strategies: Registry[Strategy] = Registry(
    "strategy",
    "How several devices share one run.",
    contract=(Strategy,),
    wiring=("ranks",),
    methods=STRATEGY_METHODS,
    base="ablatio.model.strategy.Strategy",
    facts={"several": True, "splits": "rows", "grouped_by": "", "shards": False, "engine": False, "updates": "model"},
    default="single",
    scope="devices",
)


def sharing(facts: Mapping[str, Any], knobs: Mapping[str, Any], world: int) -> int:
    """Number of devices, of `world`, that have the same rows; facts and knobs are those of the strategy."""
    return int(knobs.get(facts["grouped_by"]) or (world if facts["splits"] in ("heads", "layers") else 1))
