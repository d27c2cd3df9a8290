"""Quantization of weights: none, 8 bits with full precision for outliers, 4 bits by a table."""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Positive, Schedulable, quantizations, rule
from ablatio.errors import UserError
from ablatio.model.bit_codes import above_zero, in_groups
from ablatio.model.quantized import quantize
from ablatio.model.transfer import constants

Aware = Annotated[bool, "quantization-aware training: round trainable weights in each pass (straight-through)"]
Rounding = Annotated[
    float, Fraction, Schedulable(), "qat: share of the rounding error in the weights; stages(0@0,1@0.75) starts late"
]
# Quantiles of a normal distribution, a sixteenth of it between neighbors, scaled to [-1, 1], with an exact zero:
# arXiv:2305.14314, appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
ABSMAX = tuple(i / 7 for i in range(-7, 8))
ALL = slice(None)
SCALES = 256  # number of scales that share a second-level scale
KERNELS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # group sizes for which bitsandbytes has kernels


@quantizations.register("none")
class Unquantized:
    """Leaves the weights unquantized, in 32 or 16 bits.  Source: plain training."""

    def apply(self, model: nn.Module) -> None:
        pass


@quantizations.register("int8", paper="arXiv:2208.07339")
class Int8:
    """W ~ s c, c = round(W / s) in -127 ... 127, s = max |W| / 127 of a row; inputs likewise, except their outliers.

    The input of each token is rounded to 8 bits with its own scale; entries beyond `threshold` keep full precision and
    do not enter the scale.  LLM.int8 splits off outlier columns of the whole batch; here the split is per token, so
    that no token depends on a later one.  granularity=tensor shares one s among all weights of a matrix.  With `group`,
    s is shared by that many weights of a row, as in ZeroQuant (arXiv:2206.01861).
    """

    bits = 8

    def __init__(
        self,
        *,
        group: Annotated[int | None, Positive, "weights of a row that share a scale; null: the whole row"] = None,
        activations: Annotated[bool, "round the inputs of layers too"] = True,
        threshold: Annotated[float, NonNegative, "absolute value above which an input is an outlier; 0: none is"] = 6.0,
        qat: Aware = False,
        rounding: Rounding = 1.0,
        granularity: Annotated[Literal["row", "tensor"], "weights that share a scale, without `group`"] = "row",
    ) -> None:
        self.group, self.activations, self.threshold, self.qat = group, activations, threshold, qat
        self.rounding, self.whole = rounding, granularity == "tensor"
        if self.whole and group is not None:
            raise UserError(
                f"quantization.granularity=tensor has one scale for a matrix, and quantization.group={group} one for "
                f"every {group} weights\n    try: quantization.group=null"
            )

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=self.qat)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        grouped = in_groups(weight.float(), self.group or weight.shape[1])  # (out, groups, group)
        scales = grouped.abs().amax(-1, keepdim=True) / 127
        if self.whole:
            # One scale, stored for each row: codes are decoded in the same way for both.
            scales = scales.amax().expand_as(scales).clone()
        codes = (grouped / above_zero(scales)).round().to(torch.int8).flatten(1)
        return {"codes": codes[:, : weight.shape[1]].contiguous(), "scales": scales[..., 0]}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        scales = held["scales"][rows]
        grouped = in_groups(held["codes"][rows].to(scales.dtype), self.group or width)
        return (grouped * scales[..., None]).flatten(1)[:, :width]

    def read(self, x: Tensor) -> Tensor:
        if not self.activations:
            return x
        outlier = x.abs() > self.threshold if self.threshold else torch.zeros_like(x, dtype=torch.bool)
        plain = x.masked_fill(outlier, 0.0)
        scale = above_zero(plain.abs().amax(-1, keepdim=True) / 127)
        return torch.where(outlier, x, (plain / scale).round() * scale)


@quantizations.register("int4", paper="arXiv:2305.14314")
class Int4:
    """W ~ s t[c], t[c] the entry of the table t nearest to W / s, s = max |W| of a group; two codes per byte.

    t: nf4, for normally distributed weights, or absmax: -7/7 ... 7/7.  On a GPU, bitsandbytes decodes nf4 if it is
    installed (`pip install ablatio[quantization]`).  With `double`, s - mean(s) is stored in 8 bits, with one
    second-level scale per 256 values: 4.13 bits per weight instead of 4.5.  With `low_rank` r, W ~ s t[c] + U V: the r
    largest singular directions of the rounding error are kept beside the codes (ZeroQuant-V2's low-rank compensation,
    arXiv:2303.08302).
    """

    bits = 4

    def __init__(
        self,
        *,
        code: Annotated[Literal["nf4", "absmax"], "table of the codes"] = "nf4",
        group: Annotated[int, Positive, "weights of a row that share a scale"] = 64,
        double: Annotated[bool, "quantize the scales too"] = True,
        qat: Aware = False,
        rounding: Rounding = 1.0,
        low_rank: Annotated[int, NonNegative, "rank of the compensation of the rounding error; 0: none"] = 0,
    ) -> None:
        self.table: Sequence[float] = NF4 if code == "nf4" else ABSMAX
        self.group, self.double, self.qat, self.rounding = group, double, qat, rounding
        self.low_rank = low_rank

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, qat=self.qat)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        grouped = in_groups(weight.float(), self.group)
        scales = grouped.abs().amax(-1)  # (out, groups)
        table = constants(self.table, grouped)
        # The nearest entry is found by the middles between neighbors.
        between = (table[1:] + table[:-1]) / 2
        codes = torch.bucketize(grouped / above_zero(scales)[..., None], between).to(torch.uint8).flatten(1)
        # An odd row gets one more code for its last byte.
        codes = F.pad(codes, (0, codes.shape[1] % 2))
        packed = {"codes": codes[:, ::2] << 4 | codes[:, 1::2]}  # the first code of each pair in the high bits
        held = packed | (self._in_8_bits(scales) if self.double else {"scales": scales})
        return held | (self._compensation(weight, held) if self.low_rank else {})

    def _compensation(self, weight: Tensor, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """Best approximation U V of rank r of the rounding error: `left` (out, r) and `right` (r, in)."""
        u, s, v = torch.linalg.svd(weight.float() - self._rounded(held, weight.shape[1], ALL), full_matrices=False)
        # Half of each singular value on both sides: neither factor has entries much larger than the other.
        root = s[: self.low_rank].sqrt()
        return {"left": u[:, : self.low_rank] * root, "right": root[:, None] * v[: self.low_rank]}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        rounded = self._rounded(held, width, rows)
        return rounded + held["left"][rows] @ held["right"] if self.low_rank else rounded

    def _rounded(self, held: dict[str, Tensor], width: int, rows: slice) -> Tensor:
        packed = held["codes"][rows]
        scales = self._scales(held, rows) if self.double else held["scales"][rows]
        if packed.is_cuda and self.table is NF4 and width % self.group == 0 and self.group in KERNELS and has_kernels():
            return by_bitsandbytes(packed, scales, self.group)
        codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)[:, :width]
        values = constants(self.table, scales)[codes.int()]
        return (in_groups(values, self.group) * scales[..., None]).flatten(1)[:, :width]

    def read(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def _in_8_bits(scales: Tensor) -> dict[str, Tensor]:
        # Scales are positive: without their mean, half of the 8 bits would be unused.
        mean = scales.mean()
        grouped = in_groups((scales - mean).reshape(1, -1), SCALES)[0]
        steps = above_zero(grouped.abs().amax(-1) / 127)
        codes = (grouped / steps[:, None]).round().to(torch.int8).flatten()[: scales.numel()]
        return {"scales": codes.view_as(scales), "steps": steps, "mean": mean}

    @staticmethod
    def _scales(held: dict[str, Tensor], rows: slice) -> Tensor:
        """Decode the scales from their 8 bits: (rows, groups)."""
        codes = held["scales"]
        number = torch.arange(codes.numel(), device=codes.device).view_as(codes)[rows]
        return codes[rows].to(held["mean"].dtype) * held["steps"][number // SCALES] + held["mean"]


rule(
    when="quantization.qat and peft.name != 'none'",
    why="quantization-aware training trains the weights that it rounds, and peft={peft.name} freezes them",
    fix="quantization.qat=false",
    where="quantization.qat",
)


@functools.cache
def has_kernels() -> bool:
    """True if bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def by_bitsandbytes(packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """Same as `Int4._rounded`, by one kernel of bitsandbytes, whose layout of codes, table and scales are the same.

    packed (rows, in / 2), scales (rows, in / group), `in` a multiple of `group` -> (rows, in).
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit

    shape = torch.Size((scales.shape[0], scales.shape[1] * group))
    table = constants(NF4, scales.float())
    state = QuantState(
        absmax=scales.float().flatten(), shape=shape, dtype=torch.float32, blocksize=group, quant_type="nf4", code=table
    )
    found: Tensor = dequantize_4bit(packed.reshape(-1, 1), state)
    return found.to(scales.dtype)
