"""Optimizers; parameters come in groups by role (matrix, vector, embedding, head)."""

from typing import Annotated

import torch
from torch.optim import Optimizer

from ablatio import Fraction, NonNegative, Positive, optimizers, rule
from ablatio.model.roles import ParameterGroup

LearningRate = Annotated[float, Positive, "peak of the schedule; about 6e-3 at width 128, 6e-4 at 768"]


def decayed(groups: list[ParameterGroup], weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices, embeddings and head; none on gains and biases, which have no scale to keep down."""
    return [{**g, "weight_decay": 0.0 if g["role"] == "vector" else weight_decay} for g in groups]


@optimizers.register("adamw", paper="arXiv:1711.05101")
def adamw(
    groups: list[ParameterGroup],
    *,
    lr: LearningRate = 6e-3,
    betas: Annotated[tuple[float, float], Fraction] = (0.9, 0.95),
    eps: Annotated[float, Positive] = 1e-8,
    weight_decay: Annotated[float, NonNegative, "times lr, per step"] = 0.1,
) -> Optimizer:
    """w <- w - lr (m / (sqrt(v) + eps) + weight_decay w), m and v the corrected means of g and g^2.

    betas and weight_decay are those of GPT-3 (arXiv:2005.14165).  torch's fused kernel: on the CPU 3 to 5x its default.
    """
    return torch.optim.AdamW(decayed(groups, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


@optimizers.register("sgd", paper="doi:10.1214/aoms/1177729586", entrywise=False)
def sgd(
    groups: list[ParameterGroup],
    *,
    lr: Annotated[float, Positive, "peak of the schedule"] = 0.5,
    momentum: Annotated[float, Fraction] = 0.9,
    nesterov: bool = False,
    weight_decay: Annotated[float, NonNegative] = 0.0,
) -> Optimizer:
    """u <- momentum u + g + weight_decay w;  w <- w - lr u."""
    return torch.optim.SGD(decayed(groups, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


rule(
    when="optimizer.name == 'sgd' and optimizer.nesterov and optimizer.momentum == 0",
    why="Nesterov's step looks ahead along the momentum, and optimizer.momentum is 0",
    fix="optimizer.momentum=0.9",
)
