"""Shared functions of the positions: distances, sinusoids, and rotation of pairs of features."""

from typing import Literal

import torch
from torch import Tensor

from ablatio.model.number_format import precise

Layout = Literal["interleaved", "half"]


def distances(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Query position minus key position: (T,), (S,) -> (1, T, S); (B, T), (B, S) -> (B, 1, T, S)."""
    return (q_pos[..., :, None] - k_pos[..., None, :]).unsqueeze(-3)


def frequencies(width: int, base: float, device: torch.device) -> Tensor:
    """w_i = base^(-2i / width), in float64: (width / 2,).

    Computed at each call and not kept as a buffer: `model.to(torch.bfloat16)` would round a buffer, and the angles at
    position 1000 would be wrong by whole turns.
    """
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)


def sinusoids(pos: Tensor, width: int, base: float) -> Tensor:
    """sin(t w_i) at index 2i and cos(t w_i) at 2i + 1, in float64: (..., T) -> (..., T, width)."""
    angles = pos[..., None] * frequencies(width, base, pos.device)  # (..., T, width / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Rotate pair i of the features of x by angle i.  (B, H, T, d) -> same.

    With fewer than d / 2 angles only the leading features of each head are rotated.  `layout` says which features form
    pair i: (2i, 2i + 1) for "interleaved", (i, i + d / 2) for "half".  16-bit features are rotated in float32 and
    rounded once.
    """
    rotate = _rotate_interleaved if layout == "interleaved" else _rotate_halves
    width, wide = 2 * cos.shape[-1], precise(x.dtype)
    turned = rotate(x[..., :width].to(wide), cos.to(wide), sin.to(wide)).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def _rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))  # (B, H, T, d / 2, 2)
    if x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        # One complex product takes 0.3x the time of the real form below.  view_as_complex needs even strides and
        # offset, which a rotated part of heads of odd width does not have.
        aligned = pairs.stride(-1) == 1 and not any(n % 2 for n in (pairs.storage_offset(), *pairs.stride()[:-1]))
        numbers = torch.view_as_complex(pairs if aligned else pairs.contiguous())
        return torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
