"""Context extension of rope: how each method changes the frequencies w_i = base^(-2i/d).

Symbols: d features of a head are rotated (n = d/2 pairs); s is the factor, L the original length, l the present length,
r_i = L w_i / (2 pi) the number of turns of pair i within L.  Each function maps w (n,) to (n,), or to (..., n) for
lengths (..., 1), in float64.  `test_positions_rope.py` compares them with transformers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ablatio.model.transfer import constants

Scaling = Literal["none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, slots=True)
class Extension:
    """Settings of all methods, named as the knobs of rope; `original` is L.  Each method reads its own."""

    base: float
    factor: float
    original: int
    beta_fast: float
    beta_slow: float
    low_freq_factor: float
    high_freq_factor: float
    short_factors: tuple[float, ...] | None
    long_factors: tuple[float, ...] | None
    truncate: bool = True


def none(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w, unchanged."""
    return w


def linear(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w / s: positions are compressed into the original length (position interpolation, arXiv:2306.15595)."""
    return w / x.factor


def ntk(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w_i s^(-2i/(d-2)), a change of base: keeps the fastest pair and interpolates the slowest."""
    # base -> base s^(d/(d-2)) multiplies w_i by s^(-2i/(d-2)): exponent 0 for the first pair, 1 for the last.
    return w * x.factor ** -_relative_index(w)


def dynamic(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """ntk with s l / L - (s - 1) in place of s for l > L (arXiv:2309.00071, appendix B; with s = 1 it is l / L)."""
    # At least 1: up to L the model reads as it was trained.
    stretch = (x.factor * length.double() / x.original - (x.factor - 1)).clamp(min=1.0)
    return w * stretch ** -_relative_index(w)


def yarn(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w for pairs with more than beta_fast turns, w / s for fewer than beta_slow, a ramp between (arXiv:2309.00071).

    The ramp is linear in i, and `truncate` rounds its ends to integers, as in the released code; the paper's is linear
    in r.
    """
    n = len(w)

    def pair(turns: float) -> float:  # the index i of the pair with this number of turns within L
        return n * math.log(x.original / (2 * math.pi * turns)) / math.log(x.base)

    low, high = pair(x.beta_fast), pair(x.beta_slow)
    if x.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n - 1)
    # 0.001 avoids 0/0 where both ends fall on one pair, as in the released code.
    ramp = (torch.arange(n, dtype=w.dtype, device=w.device) - low) / (high - low if high != low else 0.001)
    return w.lerp(w / x.factor, ramp.clamp(0, 1))


def llama3(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w for r > high_freq_factor, w / s for r < low_freq_factor, linear in r between (arXiv:2407.21783)."""
    turns = x.original * w / (2 * math.pi)
    keep = (turns - x.low_freq_factor) / (x.high_freq_factor - x.low_freq_factor)
    return (w / x.factor).lerp(w, keep.clamp(0, 1))


def longrope(w: Tensor, x: Extension, length: Tensor) -> Tensor:
    """w / short_factors up to L, w / long_factors beyond (arXiv:2402.13753).

    The paper searches for both lists for each model.  Defaults: 1, and ntk's s^(2i/(d-2)), one of the starting points
    of that search.
    """
    short = w / constants(x.short_factors or (1.0,), w)
    long = w / constants(x.long_factors, w) if x.long_factors else ntk(w, x, length)
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
LENGTH_DEPENDENT: tuple[Scaling, ...] = ("dynamic", "longrope")  # their frequencies change with the length of the text


def attention_scale(scaling: Scaling, x: Extension) -> float:
    """Factor on queries and on keys that keeps the attention as sharp over more keys; 1 for most methods."""
    if scaling == "yarn":
        # The paper's fit 0.1 ln s + 1 is sqrt(1/t): on q and on k it scales the logits by 1/t.
        return 0.1 * math.log(x.factor) + 1
    if scaling == "longrope":
        # The paper's factor, which also multiplies q and k.
        return math.sqrt(1 + math.log(x.factor) / math.log(x.original))
    return 1.0


def _relative_index(w: Tensor) -> Tensor:
    """2i / (d - 2), from 0 for the fastest pair to 1 for the slowest: (n,)."""
    return torch.linspace(0, 1, len(w), dtype=w.dtype, device=w.device)
