"""What a stabilizer sees of one optimizer step; no Lightning here, so that parts can use it."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: gradients stand in the parameters, `index` counts from 0 to `total` - 1."""

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    index: int
    total: int
