"""Elementwise replacements for a norm: tanh and erf with learned slopes, and the identity."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, norms
from ablatio_std.norms import _common


@norms.register("dyt", paper="arXiv:2503.10622")
class DynamicTanh(nn.Module):
    """y = g * tanh(a x) + b; the slope a is a learned scalar initialized to alpha.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, alpha: Annotated[float, Positive] = 0.5, affine: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return _common.affine(torch.tanh(self.alpha.to(x.dtype) * x), self.weight, self.bias)


@norms.register("derf", paper="arXiv:2512.10938")
class DynamicErf(nn.Module):
    """y = g * erf(a x + s) + b; a and s are learned scalars initialized to alpha and 0.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, alpha: Annotated[float, Positive] = 0.5, affine: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.shift = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.addcmul(self.shift.to(x.dtype), self.alpha.to(x.dtype), x)
        return _common.affine(torch.erf(shifted), self.weight, self.bias)


@norms.register("identity", paper="arXiv:2311.01906")
class Identity(nn.Module):
    """y = x: no normalization.  (..., d_model) -> same."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
