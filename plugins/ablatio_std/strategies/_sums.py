"""Sums over all ranks, those with the same rows included."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def summed(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum of a tensor of one shape over all ranks, or those of a group, without a gradient."""
    found = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found, group=group)
    return found


def exchange(gradients: Sequence[Tensor | None], reduce: Callable[[Tensor], Tensor]) -> None:
    """Replace gradients by what `reduce` makes of them over the ranks; they are sent together, None is left out."""
    own = [gradient for gradient in gradients if gradient is not None]
    if own:
        whole = reduce(torch.cat([gradient.flatten() for gradient in own]))
        for gradient, found in zip(own, whole.split([gradient.numel() for gradient in own]), strict=True):
            gradient.copy_(found.view_as(gradient))
