"""The plain feed-forward part, and what every feed-forward part is handed."""

from collections.abc import Callable
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import mlps
from ablatio.model.context import Context


class MlpWiring(TypedDict):
    """What the model hands to a feed-forward part; inner_norm: makes the norm before down_proj, or None."""

    d_model: int
    d_ff: int
    activation: Callable[..., Tensor]
    gated: bool
    bias: bool
    dropout: float
    layer: int
    n_layers: int
    inner_norm: Callable[[int], nn.Module] | None


@mlps.register("dense", paper="arXiv:1706.03762")
class Dense(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x), up(x))) when the activation is gated.  (B, T, D) -> same."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[..., Tensor],
        gated: bool,
        bias: bool,
        dropout: float,
        inner_norm: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias) if gated else None
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.inner_norm = inner_norm(d_ff) if inner_norm else None
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        up = self.up_proj(x)  # (B, T, d_ff)
        inner = self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(x), up)
        y = self.down_proj(inner if self.inner_norm is None else self.inner_norm(inner))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y
