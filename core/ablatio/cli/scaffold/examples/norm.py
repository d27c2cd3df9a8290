import torch
from torch import Tensor, nn

from ablatio import norms


@norms.register("maxnorm", paper="arXiv:1803.01814")
class MaxNorm(nn.Module):
    """y = g * x / (max|x| + eps), the maximum over the last axis.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps)
