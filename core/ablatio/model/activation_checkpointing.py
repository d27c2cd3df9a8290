"""Layers that keep nothing but what they read: the backward pass computes the rest of it once more."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablatio.model.context import Context
from ablatio.model.kv_cache import Standing
from ablatio.model.language_model import LanguageModel
from ablatio.model.stack import Stack, in_turn

CODES = (torch.int8, torch.uint8)  # weights in few bits: no pass moves them, and a copy would take their memory again


def recompute(model: LanguageModel, segment: int) -> None:
    """Keep only the residual stream before each `segment` of layers, in all stacks of the model."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.run = Recomputed(segment)
    model.shared_prefix = False  # a start that was read once leaves its keys in a cache, and a second pass would too


class Recomputed:
    """Layers one after the other, `segment` of them at a time: (B, T, D) -> same."""

    def __init__(self, segment: int) -> None:
        self.segment = segment

    def __call__(self, layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
        caches = ctx.cache is not None and not isinstance(ctx.cache, Standing)
        if caches or not torch.is_grad_enabled():
            return in_turn(layers, x, ctx)
        for start in range(0, len(layers), self.segment):
            x = _passed_twice(layers[start : start + self.segment], x, ctx)
        return x


def _passed_twice(layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
    """The second pass finds what the first one found: the context, the random numbers, and what layers keep."""
    before, second = ctx.as_now(), False
    buffers = [b for layer in layers for b in layer.buffers() if b.dtype not in CODES]
    held, versions = [b.clone() for b in buffers], [b._version for b in buffers]

    def run(x: Tensor) -> Tensor:
        nonlocal second
        if not second:
            second = True
            return in_turn(layers, x, ctx)
        moved = [(b, old, b.clone()) for b, old, v in zip(buffers, held, versions, strict=True) if b._version != v]
        for buffer, old, _ in moved:
            buffer.copy_(old)
        try:
            return in_turn(layers, x, before.as_now())
        finally:  # also where no more than a part of the pass is needed
            for buffer, _, new in moved:
                buffer.copy_(new)

    found: Tensor = checkpoint(run, x, use_reentrant=False)
    return found
