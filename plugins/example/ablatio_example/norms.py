"""Normalization by the mean absolute value (Hoffer et al. 2018, arXiv:1803.01814)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, norms


@norms.register("l1norm", paper="arXiv:1803.01814")
class L1Norm(nn.Module):
    """y = g * x / (sqrt(pi / 2) mean|x| + eps), the mean over the last axis.  (..., d_model) -> same.

    sqrt(pi / 2) mean|x| is the standard deviation of a normal x.  Without a square, float16 does not overflow.
    """

    def __init__(self, d_model: int, *, eps: Annotated[float, Positive] = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = x / (math.sqrt(math.pi / 2) * x.abs().mean(-1, keepdim=True) + self.eps)
        return y if self.weight is None else y * self.weight
