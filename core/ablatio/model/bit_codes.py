"""Integer codes of few bits: groups of weights with a scale, and codes packed into bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def in_groups(weight: Tensor, size: int) -> Tensor:
    """Split rows into groups: (rows, in) -> (rows, groups, size), the last group padded with zeros."""
    padded = F.pad(weight, (0, -weight.shape[1] % size))
    return padded.view(len(padded), -1, size)


def above_zero(scales: Tensor) -> Tensor:
    """Replace zero scales by 1, to divide by them: a group of zeros."""
    return torch.where(scales > 0, scales, 1.0)


def rounded_inputs(x: Tensor) -> Tensor:
    """Round each vector of x to 8 bits with its own scale, max |x| / 127.  (..., D) -> same."""
    scale = above_zero(x.abs().amax(-1, keepdim=True) / 127)
    return (x / scale).round() * scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes 0 ... 2^bits - 1 of each row without gaps: (rows, n) -> (rows, n * bits / 8 rounded up) bytes."""
    places = torch.arange(bits, device=codes.device)
    ones = (codes.to(torch.int32)[..., None] >> places & 1).to(torch.uint8).flatten(1)
    ones = in_groups(ones, 8)
    packed: Tensor = (ones << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`: (rows, bytes) -> (rows, count) int32."""
    ones = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    parts = ones.flatten(1)[:, : count * bits].reshape(len(packed), count, bits).to(torch.int32)
    return (parts << torch.arange(bits, device=packed.device)).sum(-1).int()


class GroupedIntegers:
    """W ~ s c, c = round(W / s) in -m ... m, m = 2^(bits - 1) - 1, s = max |W| / m of each group of a row."""

    def __init__(self, bits: int, group: int) -> None:
        self.bits, self.group, self.largest = bits, group, 2 ** (bits - 1) - 1

    def scales(self, weight: Tensor) -> Tensor:
        """Scale of each group: (rows, in) -> (rows, groups)."""
        found: Tensor = in_groups(weight, self.group).abs().amax(-1) / self.largest
        return found

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Round a matrix to the nearest codes."""
        scales = self.scales(weight.float())
        codes = (in_groups(weight.float(), self.group) / above_zero(scales)[..., None]).round()
        return self.packed(codes.flatten(1)[:, : weight.shape[1]], scales)

    def packed(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Store codes -m ... m, (rows, in), and scales (rows, groups)."""
        return {"codes": pack(codes.int() + self.largest, self.bits), "scales": scales}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice) -> Tensor:
        """Dequantize some rows: (rows, width)."""
        scales = held["scales"][rows]
        codes = unpack(held["codes"][rows], self.bits, width) - self.largest
        return (in_groups(codes.to(scales.dtype), self.group) * scales[..., None]).flatten(1)[:, :width]
