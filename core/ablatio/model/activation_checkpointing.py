"""Activation checkpointing: what is stored for the backward pass, where, and what is recomputed in it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ablatio.model.context import Context
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
        if _keeps_all(ctx):
            return run_in_order(layers, x, ctx)
        for start in range(0, len(layers), self.segment):
            part = layers[start : start + self.segment]
            x = _recomputed(lambda x, ctx, part=part: run_in_order(part, x, ctx), part, x, ctx)  # type: ignore[misc]
        return x


def _keeps_all(ctx: Context) -> bool:
    """True if nothing is trained, or a cache stores keys, which a recomputation would add to it again."""
    caches = ctx.cache is not None and ctx.cache.stores
    return caches or not torch.is_grad_enabled()


def recompute_parts(model: LanguageModel, kinds: Collection[str], stored: Collection[str]) -> None:
    """Recompute the parts of these kinds (attention, mlp) but for the results of the operations in `stored`."""
    for module in model.modules():
        if getattr(module, "built_as", "") in kinds:
            module.forward = RecomputedPart(module, stored)


class RecomputedPart:
    """The forward pass of a part of a layer under torch's selective checkpoint: (B, T, D), context -> (B, T, D).

    stored  names of ATen operations whose results are stored; all others are recomputed
    """

    def __init__(self, part: nn.Module, stored: Collection[str]) -> None:
        self.part, self.inner, self.stored = [part], part.forward, frozenset(stored)  # a list: it is no submodule

    def __call__(self, x: Tensor, ctx: Context) -> Tensor:
        """Run the part; without checkpointing if nothing is trained or a cache stores keys."""
        if _keeps_all(ctx):
            found: Tensor = self.inner(x, ctx)
            return found
        return _recomputed(self.inner, self.part, x, ctx, self._contexts)

    def _contexts(self) -> tuple[Any, Any]:
        first, second = create_selective_checkpoint_contexts(self._policy)  # type: ignore[no-untyped-call]
        for storages in _observers:
            storages.append(first.storage)
        return first, second

    def _policy(self, ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = operation._overloadpacket.__name__
        return CheckpointPolicy.MUST_SAVE if name in self.stored else CheckpointPolicy.PREFER_RECOMPUTE


_observers: list[list[Any]] = []


@contextmanager
def observed_storage() -> Iterator[Callable[[], list[Tensor]]]:
    """Context that gives a function: the tensors that selective checkpointing has stored inside so far.

    torch keeps them beside autograd's saved tensors, so that hooks on these do not see them.
    """
    storages: list[Any] = []
    _observers.append(storages)
    try:
        yield lambda: [
            wrapped.val for storage in storages for wrapped in tree_leaves([*map(dict, storage.values())])
            if isinstance(getattr(wrapped, "val", None), Tensor)
        ]  # fmt: skip
    finally:
        _observers.remove(storages)


def offload(model: LanguageModel) -> None:
    """Store what the layers save for the backward pass in the memory of the CPU."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.run = Offloaded()


class Offloaded:
    """Runs layers in order; tensors saved for the backward pass, except weights, are moved to the CPU and back."""

    def __call__(self, layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
        """Run the layers: (B, T, D) -> same."""
        if not torch.is_grad_enabled():
            return run_in_order(layers, x, ctx)
        weights = {p.untyped_storage()._cdata for layer in layers for p in layer.parameters()}

        def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
            if tensor.untyped_storage()._cdata in weights:
                return tensor
            return tensor.device, self.to_host(tensor)

        def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return run_in_order(layers, x, ctx)

    def to_host(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the CPU: into pinned memory, without waiting for the device; CPU tensors stay."""
        if tensor.device.type == "cpu":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        return host.copy_(tensor, non_blocking=True)


def _recomputed(
    first_pass: Callable[[Tensor, Context], Tensor],
    modules: Sequence[nn.Module],
    x: Tensor,
    ctx: Context,
    contexts: Callable[[], tuple[Any, Any]] | None = None,
) -> Tensor:
    """Run `modules` under torch's checkpoint; the recomputation uses the first pass's context, random state, buffers.

    contexts  makes the contexts of both passes, for selective checkpointing
    """
    before, second = ctx.snapshot(), False
    buffers = [b for module in modules for b in module.buffers() if b.dtype not in CODES]
    held, versions = [b.clone() for b in buffers], [b._version for b in buffers]

    def run(x: Tensor) -> Tensor:
        nonlocal second
        if not second:
            second = True
            return first_pass(x, ctx)
        # The version counter shows which buffers the first pass has changed (a router's balancing bias).
        moved = [(b, old, b.clone()) for b, old, v in zip(buffers, held, versions, strict=True) if b._version != v]
        for buffer, old, _ in moved:
            buffer.copy_(old)
        try:
            return first_pass(x, before.snapshot())
        finally:  # checkpoint stops the recomputation early, by an exception, once it has all it needs
            for buffer, _, new in moved:
                buffer.copy_(new)

    more: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    found: Tensor = checkpoint(run, x, use_reentrant=False, **more)
    return found
