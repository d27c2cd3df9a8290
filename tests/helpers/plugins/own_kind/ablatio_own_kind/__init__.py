"""The kind `residual_gate`: a learned factor on each sublayer's contribution to the residual stream."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import NonNegative
from ablatio.registry.registry import Registry

residual_gates: Registry[nn.Module] = Registry(
    "residual_gate",
    "Factor on the output of a sublayer before it is added.",
    wiring=("d_model",),
    methods=("forward",),
    scope="model",
    attaches="sublayer",
    default="none",
)


@residual_gates.register("none")
class NoGate(nn.Module):
    """y = x, as in a plain transformer.  Source: He et al., Deep Residual Learning, arXiv:1512.03385."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@residual_gates.register("scalar", paper="arXiv:2003.04887")
class ScalarGate(nn.Module):
    """y = g x with one learned number g for each sublayer.  (..., d_model) -> same."""

    def __init__(self, *, start: Annotated[float, NonNegative] = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.to(x.dtype) * x


@residual_gates.register("channel", paper="arXiv:2103.17239")
class ChannelGate(nn.Module):
    """y = g * x with one learned number for each feature.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, start: Annotated[float, NonNegative] = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.to(x.dtype) * x
