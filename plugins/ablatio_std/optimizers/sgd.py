"""Gradient descent with one learning rate, or with one for each weight: sgd, adagrad."""

from typing import Annotated

import torch
from torch.optim import Optimizer

from ablatio import NonNegative, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Coupled, Eps, Momentum, Rate, decayed


@optimizers.register("sgd", paper="doi:10.1214/aoms/1177729586", entrywise=False, updates="entry")
def sgd(
    groups: list[ParameterGroup],
    *,
    lr: Rate = 0.5,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: Coupled = 0.0,
) -> Optimizer:
    """u <- momentum u + g + weight_decay w;  w <- w - lr u."""
    return torch.optim.SGD(decayed(groups, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


rule(
    when="optimizer.name == 'sgd' and optimizer.nesterov and optimizer.momentum == 0",
    why="optimizer.nesterov=true needs momentum, and optimizer.momentum is 0",
    fix="optimizer.momentum=0.9",
)


@optimizers.register("adagrad", paper="https://jmlr.org/papers/v12/duchi11a.html", updates="entry")
def adagrad(
    groups: list[ParameterGroup],
    *,
    lr: Rate = 2e-2,
    start: Annotated[float, NonNegative, "initial value of s"] = 0.0,
    eps: Eps = 1e-10,
    weight_decay: Coupled = 0.0,
) -> Optimizer:
    """s <- s + g^2;  w <- w - lr g / (sqrt(s) + eps)."""
    settings = {"lr": lr, "eps": eps, "initial_accumulator_value": start}
    return torch.optim.Adagrad(decayed(groups, weight_decay), **settings, fused=True)
