"""Layers without attention."""

import torch
from torch import Tensor, nn

from ablatio import attentions
from ablatio.model.context import Context


@attentions.register("none")
class NoAttention(nn.Module):
    """0: layers are built without attention, its norms and its residual connection.  (B, T, D) -> same.

    Tokens then see no others, unless other layers have an attention: `layers.at.attention={0: none}`.  Source: the
    ablation itself; it has no parameters.
    """

    absent, takes_bias, queries_scale = True, True, False

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return torch.zeros_like(x)
