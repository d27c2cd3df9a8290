"""What keeps a run from diverging."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, stabilizers
from ablatio.tasks.step import Step


@stabilizers.register("clip", paper="arXiv:1211.5063")
class Clip:
    """g <- g * min(1, max_norm / ||g||), the norm over all parameters."""

    metrics = ("train/grad_norm",)

    def __init__(self, *, max_norm: Annotated[float, Positive] = 1.0) -> None:
        self.max_norm = max_norm

    def before_step(self, step: Step) -> dict[str, Tensor]:
        return {"train/grad_norm": torch.nn.utils.clip_grad_norm_(step.parameters, self.max_norm, foreach=True)}
