"""Feed-forward layer with short causal convolutions: the Canon layers C and D."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, mlps
from ablatio.model.context import Context
from ablatio.model.local_mixing import ShortConv, convolve


@mlps.register("canon", paper="arXiv:2512.17351")
class Canon(nn.Module):
    """down(activation(y + conv(y))), y = up(x) or (gate(x), up(x)), on x + conv'(x) in place of x.  (B, T, D) -> same.

    conv' on the input is Canon-C, conv on the inner units Canon-D; `on` chooses.  They add the preceding tokens of the
    document, in an encoder too, and are initialized to zero, so that the initial model is that of mlp=dense.
    attention=conv_mha with attention.on=both has Canon-A and B.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[..., Tensor],
        gated: bool,
        bias: bool,
        dropout: float,
        inner_norm: Callable[[int], nn.Module] | None,
        *,
        conv: Annotated[int, Range(1), "number of tokens in the convolution, the current one included"] = 4,
        on: Literal["both", "input", "inner"] = "both",
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias) if gated else None
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.inner_norm = inner_norm(d_ff) if inner_norm else None
        self.on_input = ShortConv(d_model, conv) if on != "inner" else None
        # Gate and up are convolved as one tensor: one call, and the convolution is depthwise anyway.
        self.on_inner = ShortConv(d_ff * (1 + gated), conv) if on != "input" else None
        for module in (self.on_input, self.on_inner):
            if module is not None:
                nn.init.zeros_(module.weight)
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.mixed(self.on_input, x, ctx)
        y = self.up_proj(x) if self.gate_proj is None else torch.cat([self.gate_proj(x), self.up_proj(x)], dim=-1)
        y = self.mixed(self.on_inner, y, ctx)
        inner = self.activation(*y.chunk(1 if self.gate_proj is None else 2, dim=-1))  # (B, T, d_ff)
        y = self.down_proj(inner if self.inner_norm is None else self.inner_norm(inner))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def mixed(self, conv: nn.Module | None, x: Tensor, ctx: Context) -> Tensor:
        """x + conv(x), (B, T, channels) -> same; x without `conv`."""
        if conv is None:
            return x
        (added,) = convolve([conv], [x], conv, ctx)  # a block may have two such parts in a layer
        return x + added.to(x.dtype)
