from typing import Any

import torch
from torch import Tensor, nn

from ablatio import pefts
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, widths


class Gain(MatrixAdapter):
    """diag(1 + g) W, g (out,)."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(out))

    def matrix(self, weight: Tensor) -> Tensor:
        return (1 + self.gain)[:, None] * weight  # (out, in)


@pefts.register("output_gain", paper="arXiv:2205.05638")
class OutputGain(LayerPeft):
    """y = (1 + g) * (W x) + b: W and b are frozen, g (out,) is zero at the start, so the model begins as the base."""

    def __init__(self, *, targets: Targets = ("q_proj", "v_proj")) -> None:
        super().__init__(targets)

    def adapter(self, layer: Any, path: str) -> Gain:
        return Gain(widths(layer)[0])
