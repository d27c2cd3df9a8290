"""What positions share: distances, frequencies, and the turning of pairs."""

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["interleaved", "half"]


def distances(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """How far each key is behind each query: (T,), (S,) -> (1, T, S); (B, T), (B, S) -> (B, 1, T, S)."""
    return (q_pos[..., :, None] - k_pos[..., None, :]).unsqueeze(-3)


def frequencies(width: int, base: float, device: torch.device) -> Tensor:
    """base^(-2i / width): (width / 2,).

    Made anew in float64, never a buffer: `model.to(torch.bfloat16)` would round it, and position 1000 be off by whole
    turns.
    """
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)


def waves(pos: Tensor, width: int, base: float) -> Tensor:
    """sin(t w_i) at 2i and cos(t w_i) at 2i + 1: (..., T) -> (..., T, width), in float64."""
    angles = pos[..., None] * frequencies(width, base, pos.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Pair i of x (B, H, T, d) turned by its angle; a leading part of each head where there are fewer angles."""
    turn_all = _turn_pairs if layout == "interleaved" else _turn_halves
    width = 2 * cos.shape[-1]
    if width == x.shape[-1]:
        return turn_all(x, cos, sin)
    return torch.cat([turn_all(x[..., :width], cos, sin), x[..., width:]], dim=-1)


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        # One complex product: 0.3x the time of rotate-half.
        # Its numbers lie in twos: heads of an odd width, of which a part is turned, do not.
        in_twos = pairs.stride(-1) == 1 and not any(n % 2 for n in (pairs.storage_offset(), *pairs.stride()[:-1]))
        wide = torch.view_as_complex(pairs if in_twos else pairs.contiguous())
        return torch.view_as_real(wide * torch.complex(cos, sin)).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
