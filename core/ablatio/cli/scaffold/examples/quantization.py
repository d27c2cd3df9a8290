import torch
from torch import Tensor, nn

from ablatio import quantizations
from ablatio.model.quantized import quantize


@quantizations.register("row_int8", paper="arXiv:2206.01861")
class RowInt8:
    """W ~ s c, c = round(W / s) in -127 ... 127, s = max |W| / 127 of a row."""

    bits = 8

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=False)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        scales = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (out, 1)
        return {"codes": (weight.float() / scales).round().to(torch.int8), "scales": scales}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = slice(None)) -> Tensor:
        return held["codes"][rows].to(held["scales"].dtype) * held["scales"][rows]  # (rows, in)

    def read(self, x: Tensor) -> Tensor:
        return x
