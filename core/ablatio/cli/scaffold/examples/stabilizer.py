from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, stabilizers
from ablatio.model.optimizer_step import OptimizerStep


@stabilizers.register("clamp", paper="arXiv:1211.5063")
class Clamp:
    """g <- min(max(g, -limit), limit), entry by entry, before each step."""

    metrics = ("train/clamped",)

    def __init__(self, *, limit: Annotated[float, Positive, "largest entry of a gradient"] = 0.01) -> None:
        self.limit = limit

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        gradients = [p.grad for p in step.parameters if p.grad is not None]
        beyond = torch.stack([(g.abs() > self.limit).float().mean() for g in gradients]).mean()
        for gradient in gradients:
            gradient.clamp_(-self.limit, self.limit)
        return {"train/clamped": beyond}
