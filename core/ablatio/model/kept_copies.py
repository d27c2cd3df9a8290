"""Copies of weights in the dtype of a pass, made once for as long as the weights stay the same.

A master weight of the output head has V * D numbers in float32; in 16 bits every batch of a step would convert it anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

# (weight, its version, the copy) by identity and dtype: of a run, between two updates of its weights.
Copies = dict[tuple[int, torch.dtype], tuple[Tensor, int, Tensor]]
_kept: ContextVar[Copies | None] = ContextVar("kept_copies", default=None)


@contextmanager
def kept_copies(copies: Copies) -> Iterator[None]:
    """Context in which `in_dtype` puts its copies into `copies` and finds those that are there.

    The owner of `copies` empties it before the weights change by other ways than torch's operations in place.
    """
    token = _kept.set(copies)
    try:
        yield
    finally:
        _kept.reset(token)


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of `weight` in `dtype`, without a gradient to it; the same tensor again while it is kept."""
    if weight.dtype == dtype:
        return weight
    copies = None if torch.compiler.is_compiling() else _kept.get()
    if copies is None:
        return weight.detach().to(dtype)
    held = copies.get((id(weight), dtype))
    # The weight itself is held: its identity is not that of another one, made later.
    if held is None or held[0] is not weight or held[1] != weight._version:
        copies[id(weight), dtype] = held = (weight, weight._version, weight.detach().to(dtype))
    return held[2]
