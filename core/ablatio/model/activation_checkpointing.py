"""Activation checkpointing: layers store only their input, and the backward pass recomputes the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablatio.model.context import Context
from ablatio.model.kv_cache import VirtualTokensCache
from ablatio.model.language_model import LanguageModel
from ablatio.model.stack import Stack, run_in_order

CODES = (torch.int8, torch.uint8)  # quantized weights: no pass changes them, and a copy would double their memory


def recompute(model: LanguageModel, segment: int) -> None:
    """Store only the residual stream before each `segment` of layers, in all stacks of the model."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.run = Recomputed(segment)
    model.shared_prefix = False  # recomputing a prefix would add its keys to the cache twice


class Recomputed:
    """Runs layers in order, checkpointing `segment` of them at a time: (B, T, D) -> same."""

    def __init__(self, segment: int) -> None:
        self.segment = segment

    def __call__(self, layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
        """Run the layers; without checkpointing if nothing is trained or a cache stores keys."""
        caches = ctx.cache is not None and not isinstance(ctx.cache, VirtualTokensCache)
        if caches or not torch.is_grad_enabled():
            return run_in_order(layers, x, ctx)
        for start in range(0, len(layers), self.segment):
            x = _recomputed_segment(layers[start : start + self.segment], x, ctx)
        return x


def _recomputed_segment(layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
    """Run layers under torch's checkpoint; the recomputation uses the first pass's context, random state, buffers."""
    before, second = ctx.snapshot(), False
    buffers = [b for layer in layers for b in layer.buffers() if b.dtype not in CODES]
    held, versions = [b.clone() for b in buffers], [b._version for b in buffers]

    def run(x: Tensor) -> Tensor:
        nonlocal second
        if not second:
            second = True
            return run_in_order(layers, x, ctx)
        # The version counter shows which buffers the first pass has changed (a router's balancing bias).
        moved = [(b, old, b.clone()) for b, old, v in zip(buffers, held, versions, strict=True) if b._version != v]
        for buffer, old, _ in moved:
            buffer.copy_(old)
        try:
            return run_in_order(layers, x, before.snapshot())
        finally:  # checkpoint stops the recomputation early, by an exception, once it has all it needs
            for buffer, _, new in moved:
                buffer.copy_(new)

    found: Tensor = checkpoint(run, x, use_reentrant=False)
    return found
