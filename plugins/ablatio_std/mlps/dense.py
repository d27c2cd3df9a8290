"""The dense feed-forward layer, and the wiring of all feed-forward layers."""

from collections.abc import Callable
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import mlps
from ablatio.model.context import Context


class MlpWiring(TypedDict):
    """Arguments that the model passes to every feed-forward layer.

    d_ff         inner units of the dense layer
    gated        True if `activation` takes (gate, up)
    layer        index of the layer, from 0, of n_layers
    inner_norm   builds the norm before down_proj for a given width; None for no norm
    """

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
    """down(activation(up(x))), or down(activation(gate(x), up(x))) for a gated activation.  (B, T, D) -> same."""

    column_parallel, row_parallel = ("gate_proj", "up_proj"), ("down_proj",)
    splits_tokens = True

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


def build_dense(wiring: MlpWiring) -> Dense:
    """Build a dense layer: for a layer without experts, or as a shared expert.

    Its parameters have the names, and so the initial weights, that they have with mlp=dense.
    """
    return Dense(**{k: v for k, v in wiring.items() if k not in ("layer", "n_layers")})  # type: ignore[arg-type]
