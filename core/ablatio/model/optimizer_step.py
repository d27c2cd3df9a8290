"""What stabilizers and optimizers see of one optimizer step; no Lightning here, so that parts can use it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class SkipStep(Exception):
    """Raised in `before_step`: the weights stay as they are, and the run goes on with the next batch."""


class Rewind(Exception):
    """Raised in `before_step`: go back to a checkpoint at least `back` steps old, and leave `skip` steps' batches out.

    most: how often a run may do so before it counts as diverged
    """

    def __init__(self, why: str, *, back: int, skip: int, most: int) -> None:
        super().__init__(why)
        self.why, self.back, self.skip, self.most = why, back, skip, most


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One optimizer step: gradients stand in the parameters, `index` counts from 0 to `total` - 1.

    loss          nats per target, the mean of the step's batches
    sampled_loss  makes the loss of the last batch with targets that the model itself draws, for curvature estimates
    n_targets     how many targets that loss is the mean of
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    index: int
    total: int
    loss: Tensor
    sampled_loss: Callable[[], Tensor]
    n_targets: int
