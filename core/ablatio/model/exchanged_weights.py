"""Score a model with other weights than those that training goes on from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def exchanged_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Context in which the model holds these weights, by parameter name, in the dtypes of its own."""
    pairs = [(p, weights[name]) for name, p in model.named_parameters() if name in weights]
    trained = [p.detach().clone() for p, _ in pairs]
    with torch.no_grad():
        for p, weight in pairs:
            p.copy_(weight)  # in place: a strategy may hold the weights in storage of its own
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), weight in zip(pairs, trained, strict=True):
                p.copy_(weight)


def move_towards(averages: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float) -> None:
    """a <- a + share (w - a) in place, for each average of a weight: whole, or a part on each device."""

    def kind(tensor: Tensor) -> object:
        return type(tensor), tensor.device

    for one in {kind(average) for average in averages.values()}:  # torch's list functions take tensors of one kind
        names = [name for name, average in averages.items() if kind(average) == one]
        torch._foreach_lerp_([averages[name] for name in names], [weights[name] for name in names], share)
