"""Norms that subtract the mean: LayerNorm (Ba et al. 2016), LayerNorm without parameters, and GroupNorm."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, norms
from ablatio.errors import UserError
from ablatio.registry.rules import rule
from ablatio_std.norms import _common


@norms.register("layernorm", paper="arXiv:1607.06450")
class LayerNorm(nn.Module):
    """y = g * (x - mean(x)) / sqrt(var(x) + eps) + b over the last axis.  (..., d_model) -> same."""

    def __init__(
        self, d_model: int, *, eps: Annotated[float, Positive] = 1e-5, affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d_model)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return _common.layer_norm(x, self.weight, self.bias, self.eps)


@norms.register("nonparametric", paper="arXiv:2402.00838")
class NonparametricLayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps): LayerNorm without gain and bias, as in OLMo.  (..., d_model) -> same."""

    def __init__(self, *, eps: Annotated[float, Positive] = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _common.layer_norm(x, None, None, self.eps)


@norms.register("groupnorm", paper="arXiv:1803.08494")
class GroupNorm(nn.Module):
    """y = g * (x - mean(x)) / sqrt(var(x) + eps) + b, mean and variance over each group of features of a token.

    The last axis is split into `groups` contiguous groups of equal width.  Where `groups` does not divide the width (a
    norm inside a sublayer or of one head may be narrower), gcd(groups, width) groups are used.  (..., d_model) -> same.

    Raises:
        UserError: every group would hold a single feature, so that subtracting its mean gives zero.
    """

    def __init__(
        self,
        d_model: int,
        *,
        groups: Annotated[int, Range(1)] = 4,
        eps: Annotated[float, Positive] = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.groups, self.eps = math.gcd(groups, d_model), eps
        if self.groups == d_model > 1:
            raise UserError(
                f"norm.groups={groups} splits {d_model} features into groups of one feature, and subtracting the mean "
                f"of one feature gives zero\n    try: norm.groups="
                f"{max(d for d in range(1, d_model) if d_model % d == 0)}"
            )
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (self.groups, -1))  # (..., groups, d_model / groups)
        y = _common.layer_norm(grouped, None, None, self.eps).flatten(-2)
        return _common.affine(y, self.weight, self.bias)


rule(
    when="norm.name == 'groupnorm'",
    unless="model.d_model % norm.groups == 0 and model.d_model > norm.groups",
    why="groupnorm needs groups of equal width with at least two features: model.d_model / norm.groups = "
    "{model.d_model} / {norm.groups} = {model.d_model / norm.groups}",
    fix="norm.groups={nearest_divisor(model.d_model, min(norm.groups, model.d_model // 2))}",
)
