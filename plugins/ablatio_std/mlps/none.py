"""Layers without a feed-forward part."""

import torch
from torch import Tensor, nn

from ablatio import mlps
from ablatio.model.context import Context


@mlps.register("none")
class NoMlp(nn.Module):
    """0: layers are built without a feed-forward part, its norms and its residual connection.  (B, T, D) -> same.

    Source: attention-only transformers; it has no parameters.  For single layers: `layers.at.mlp={0: none}`.
    """

    absent = True

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return torch.zeros_like(x)
