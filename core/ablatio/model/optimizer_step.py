"""One optimizer step as stabilizers and optimizers see it; free of Lightning, so that parts can import it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Strategy


class SkipStep(Exception):
    """Raised in `before_step`: leave the weights unchanged and continue with the next batch."""


class Rewind(Exception):
    """Raised in `before_step`: return to a checkpoint at least `back` steps old and skip the batches of `skip` steps.

    most: number of rewinds after which the run counts as diverged
    """

    def __init__(self, why: str, *, back: int, skip: int, most: int) -> None:
        super().__init__(why)
        self.why, self.back, self.skip, self.most = why, back, skip, most


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One optimizer step, with gradients in the parameters; `index` counts from 0 to `total` - 1.

    loss          mean over all targets of the step's batches, in nats per target
    sampled_loss  computes the loss of the last batch with targets drawn from the model, for curvature estimates
    n_targets     number of targets in the mean of that loss
    strategy      where the gradients are, if several devices train
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    index: int
    total: int
    loss: Tensor
    sampled_loss: Callable[[], Tensor]
    n_targets: int
    strategy: Strategy = field(default_factory=lambda: Strategy(Ranks()))

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the whole gradient, over all parameters and devices."""
        return self.strategy.gradient_norm(self.parameters)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients by a factor."""
        self.strategy.scale_gradients(self.parameters, factor)
