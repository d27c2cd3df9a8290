"""Sums over ranks that have the same rows, or parts of them."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


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


def add_gradients(parameters: Sequence[nn.Parameter], total: Callable[[Tensor], Tensor]) -> None:
    """Replace the gradients of parameters by their sums; a rank that did not use a parameter has none of it."""
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    used = [p for p, any_rank in zip(parameters, total(has).tolist(), strict=True) if any_rank]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    exchange([p.grad for p in used], total)
