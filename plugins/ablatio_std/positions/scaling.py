"""Rope beyond the length it was trained at: how each method slows the frequencies w_i = base^(-2i/d).

Symbols: d numbers of a head are turned (n = d/2 pairs), s the factor, L the original length, l the length now,
r_i = L w_i / (2 pi) the turns that pair i makes within L.  All take w (n,) and give (n,), or (..., n) for lengths
(..., 1), in float64.  `test_positions_rope.py` holds them against transformers' own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scaling = Literal["none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, slots=True)
class Extension:
    """The settings of all methods; each reads its own."""

    base: float
    factor: float
    original: int
    beta_fast: float
    beta_slow: float
    low_freq_factor: float
    high_freq_factor: float
    short_factors: tuple[float, ...] | None
    long_factors: tuple[float, ...] | None


def none(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    return w


def linear(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w / s: positions are squeezed into the length known (position interpolation, arXiv:2306.15595)."""
    return w / x.factor


def ntk(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w_i s^(-2i/(d-2)), which is another base: the fastest pair stays, the slowest is interpolated."""
    return w * x.factor ** -_depth(w)


def dynamic(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """ntk with s l / L - (s - 1) in place of s as soon as l > L (arXiv:2309.00071, appendix B; s = 1: l / L)."""
    stretch = (x.factor * length.double() / x.original - (x.factor - 1)).clamp(min=1.0)
    return w * stretch ** -_depth(w)


def yarn(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """Pairs of more than beta_fast turns stay, those of fewer than beta_slow are interpolated (arXiv:2309.00071).

    Between them a ramp over i, its ends rounded to whole pairs: the released code, not the ramp over r of the paper.
    """
    n = len(w)

    def pair(turns: float) -> float:  # the i that makes so many turns within L
        return n * math.log(x.original / (2 * math.pi * turns)) / math.log(x.base)

    low = max(math.floor(pair(x.beta_fast)), 0)
    high = min(math.ceil(pair(x.beta_slow)), 2 * n - 1)
    ramp = (torch.arange(n, dtype=w.dtype, device=w.device) - low) / (high - low if high != low else 0.001)
    return w.lerp(w / x.factor, ramp.clamp(0, 1))


def llama3(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w for r > high_freq_factor, w / s for r < low_freq_factor, linear in r between (arXiv:2407.21783)."""
    turns = x.original * w / (2 * math.pi)
    keep = (turns - x.low_freq_factor) / (x.high_freq_factor - x.low_freq_factor)
    return (w / x.factor).lerp(w, keep.clamp(0, 1))


def longrope(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w / short_factors up to L, w / long_factors beyond (arXiv:2402.13753).

    The paper searches both per model.  Not given: 1, and ntk's s^(2i/(d-2)), one of the points its search starts from.
    """
    short = w / w.new_tensor(x.short_factors or (1.0,))
    long = w / w.new_tensor(x.long_factors) if x.long_factors else ntk(w, x, length)
    return torch.where(length > x.original, long, short)


METHODS: dict[Scaling, Callable[[Tensor, Extension, Tensor], Tensor]] = {
    "none": none,
    "linear": linear,
    "ntk": ntk,
    "dynamic": dynamic,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}
BY_LENGTH: tuple[Scaling, ...] = ("dynamic", "longrope")  # their frequencies change while a text grows


def sharpness(scaling: Scaling, x: Extension) -> float:
    """What queries and keys are multiplied with, so that attention stays as sharp over more keys."""
    if scaling == "yarn":
        return 0.1 * math.log(x.factor) + 1
    if scaling == "longrope":
        return math.sqrt(1 + math.log(x.factor) / math.log(x.original))
    return 1.0


def _depth(w: Tensor) -> Tensor:
    """2i / (d - 2): from 0 at the fastest pair to 1 at the slowest."""
    return torch.linspace(0, 1, len(w), dtype=w.dtype, device=w.device)
