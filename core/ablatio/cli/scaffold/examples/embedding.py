import torch
from torch import Tensor, nn

from ablatio import embeddings
from ablatio.model.context import Context


@embeddings.register("gained", paper="arXiv:1706.03762")
class Gained(nn.Module):
    """g * x with a learned gain g for each channel.  (B, T, D) -> same."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        return self.gain * x
