"""Embeddings, shortcuts and heads built in isolation, for their suites."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ablatio.registry.registry import PartSpec
from ablatio.testing import sample_parts, tiny_models


def embedding(entry: PartSpec, knobs: Mapping[str, Any] | None = None, width: int = 16) -> tuple[nn.Module, int]:
    """(an embedding of the small model's vocabulary in float64, off its start; width of its token table)."""
    sizes = {"d_model": width, "vocab_size": tiny_models.VOCAB, "n_layers": 2, "max_len": 32, "side": "decoder"}
    part = sample_parts.made(entry, knobs, **sizes).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in part.parameters():  # a factor that starts at 0 would hide what it multiplies
            p += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return part, getattr(part, "width", width)


def shortcut(
    entry: PartSpec, knobs: Mapping[str, Any] | None = None, n_layers: int = 5, width: int = 16
) -> list[nn.Module]:
    """The shortcuts of a stack in float64, off their start: one before each layer, and one after the last."""
    sizes = {"d_model": width, "d_head": 4, "n_heads": 4, "vocab_size": tiny_models.VOCAB, "max_len": 32}
    wiring = {"n_layers": n_layers, "side": "decoder", "value_widths": (width,) * n_layers, **sizes}
    found = [sample_parts.made(entry, knobs, layer=layer, **wiring).double() for layer in range(n_layers + 1)]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in (p for part in found for p in part.parameters()):
            p += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return found


def head(entry: PartSpec, knobs: Mapping[str, Any] | None = None, width: int = 16) -> nn.Module:
    """A head of the small model in float64."""
    made: nn.Module = sample_parts.made(entry, knobs, d_model=width, vocab_size=tiny_models.VOCAB)
    return made.double()
