"""Norms that divide by a root mean square or length without subtracting the mean: RMSNorm and variants."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, norms
from ablatio.model.attention.softmax_attention import RMSNorm as HeadRMSNorm
from ablatio_std.norms._common import rms_norm


@norms.register("rmsnorm", paper="arXiv:1910.07467")
class RMSNorm(nn.Module):
    """y = g * x / sqrt(mean(x^2) + eps), the mean over the last axis.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, eps: Annotated[float, Positive] = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    @staticmethod
    def for_heads(width: int) -> nn.Module:
        """In the order of operations that attention.qk_norm=rmsnorm has always had: runs keep their digits."""
        return HeadRMSNorm(width)


@norms.register("gemma_rmsnorm", paper="arXiv:2403.08295")
class GemmaRMSNorm(nn.Module):
    """y = (1 + w) * x / sqrt(mean(x^2) + eps), w initialized to 0, so that weight decay pulls the gain to 1.

    (..., d_model) -> same.
    """

    def __init__(self, d_model: int, *, eps: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1 + self.weight, self.eps)


@norms.register("simple_rmsnorm", paper="arXiv:2307.14995")
class SimpleRMSNorm(nn.Module):
    """y = sqrt(d_model) * x / |x|: RMSNorm without a learned gain.  (..., d_model) -> same.

    eps is added to mean(x^2), as in RMSNorm.
    """

    def __init__(self, *, eps: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, None, self.eps)


@norms.register("scalenorm", paper="arXiv:1910.05895")
class ScaleNorm(nn.Module):
    """y = g * x / |x| with one learned scalar g, the length of every output vector, initialized to sqrt(d_model).

    eps is added to mean(x^2), as in RMSNorm.  (..., d_model) -> same.
    """

    def __init__(self, d_model: int, *, eps: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((1,), math.sqrt(d_model)))

    def forward(self, x: Tensor) -> Tensor:
        d_model = x.shape[-1]
        return rms_norm(x, (self.weight / math.sqrt(d_model)).expand(d_model), self.eps)
