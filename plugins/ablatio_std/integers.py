"""Integer weights of six and five bits, of three values, and of two."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Fraction, Positive, Schedulable, quantizations
from ablatio.model.bit_codes import GroupedIntegers, above_zero, in_groups, pack, rounded_inputs, unpack
from ablatio.model.quantized import quantize

Aware = Annotated[bool, "quantization-aware training: round trainable weights in each pass (straight-through)"]
Rounding = Annotated[
    float, Fraction, Schedulable(), "qat: share of the rounding error in the weights; stages(0@0,1@0.75) starts late"
]
ALL = slice(None)


@quantizations.register("int6")
class Int6:
    """W ~ s c, c = round(W / s) in -31 ... 31, s = max |W| / 31 of each group of a row; four codes in three bytes.

    Source: the artifacts of OpenAI's Parameter Golf, https://github.com/openai/parameter-golf
    """

    bits = 6

    def __init__(
        self,
        *,
        group: Annotated[int, Positive, "weights of a row that share a scale"] = 64,
        qat: Aware = False,
        rounding: Rounding = 1.0,
    ) -> None:
        self.codes, self.qat, self.rounding = GroupedIntegers(self.bits, group), qat, rounding

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=self.qat)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return self.codes.encode(weight)

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        return self.codes.decode(held, width, rows)

    def read(self, x: Tensor) -> Tensor:
        return x


@quantizations.register("int5")
class Int5(Int6):
    """W ~ s c, c = round(W / s) in -15 ... 15, s = max |W| / 15 of each group of a row; eight codes in five bytes.

    Source: the artifacts of OpenAI's Parameter Golf, https://github.com/openai/parameter-golf
    """

    bits = 5


@quantizations.register("ternary", paper="arXiv:2402.17764")
class Ternary:
    """W ~ s c, c = round(W / s) clipped to -1, 0, 1, s = mean |W| of the matrix; inputs are rounded to 8 bits.

    BitNet b1.58: the input of each token has its own scale, max |x| / 127.  It is meant for training with qat=true; to
    round trained weights it is coarse.  Four codes are stored in a byte.  With `group`, s is that of a group of a row.
    """

    bits = 2

    def __init__(
        self,
        *,
        group: Annotated[int | None, Positive, "weights of a row that share a scale; null: the whole matrix"] = None,
        activations: Annotated[bool, "round the inputs of layers too"] = True,
        qat: Aware = False,
        rounding: Rounding = 1.0,
    ) -> None:
        self.group, self.activations, self.qat, self.rounding = group, activations, qat, rounding

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=self.qat)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        if self.group is None:
            # The mean, not the largest value: with three codes the largest would round most weights to 0.
            scales = weight.abs().mean().view(1, 1)
        else:  # the zeros that fill the last group do not count
            count = in_groups(torch.ones_like(weight[:1]), self.group).sum(-1)
            scales = in_groups(weight, self.group).abs().sum(-1) / count
        grouped = in_groups(weight, self.group or weight.shape[1]) / above_zero(scales)[..., None]
        codes = grouped.round().clamp(-1, 1).flatten(1)[:, : weight.shape[1]]
        # 0, 1, 2: packing takes no negative numbers.
        return {"codes": pack(codes.int() + 1, 2), "scales": scales}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        scales = held["scales"] if self.group is None else held["scales"][rows]
        codes = unpack(held["codes"][rows], 2, width) - 1
        return (in_groups(codes.to(scales.dtype), self.group or width) * scales[..., None]).flatten(1)[:, :width]

    def read(self, x: Tensor) -> Tensor:
        return rounded_inputs(x) if self.activations else x


@quantizations.register("binary", paper="arXiv:2310.11453")
class Binary:
    """W ~ s c, c = 1 where W > a, else -1, a the mean of the matrix and s = mean |W|; inputs are rounded to 8 bits.

    BitNet: the input of each token has its own scale, max |x| / 127.  It is meant for training with qat=true; to round
    trained weights it is coarse.  Eight codes are stored in a byte.  BitNet's norm of the inputs of each layer is left
    to the placement (placement=subln has one before the last projection of each sublayer).
    """

    bits = 1

    def __init__(
        self,
        *,
        activations: Annotated[bool, "round the inputs of layers too"] = True,
        qat: Aware = False,
        rounding: Rounding = 1.0,
    ) -> None:
        self.activations, self.qat, self.rounding = activations, qat, rounding

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=self.qat)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        # The mean is subtracted before the sign alone: it balances the codes, and costs no number in storage.
        codes = (weight > weight.mean()).int()
        return {"codes": pack(codes, 1), "scales": weight.abs().mean().view(1, 1)}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        return (2 * unpack(held["codes"][rows], 1, width) - 1).to(held["scales"].dtype) * held["scales"]

    def read(self, x: Tensor) -> Tensor:
        return rounded_inputs(x) if self.activations else x
