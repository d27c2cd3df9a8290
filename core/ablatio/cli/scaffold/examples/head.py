import torch
from torch import Tensor, nn

from ablatio import heads


@heads.register("asinh", paper="Source: this page")
class Asinh(nn.Module):
    """unit asinh(z / unit): large logits grow as their logarithm.  (..., V) -> same."""

    elementwise = True

    def __init__(self, *, unit: float = 10.0) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, logits: Tensor) -> Tensor:
        return self.unit * torch.asinh(logits / self.unit)
