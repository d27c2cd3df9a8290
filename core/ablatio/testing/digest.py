"""Digest of values: equal digests mean equal tensors, numbers and texts, bit for bit."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest(value: Any) -> str:
    """sha256 of tensors, arrays, numbers, strings and nests of them."""
    total = hashlib.sha256()
    for piece in _pieces(value):
        total.update(piece)
    return total.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain.float() if plain.dtype is torch.bfloat16 else plain
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield plain.contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _pieces([field.name, getattr(value, field.name)])
    elif isinstance(value, Mapping):
        yield from _pieces([piece for pair in value.items() for piece in pair])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, bool | int | float | str | bytes | None):
        yield f"{type(value).__name__}:{value!r};".encode()
    else:
        yield f"{type(value).__name__};".encode()
