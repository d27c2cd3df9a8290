"""Score a model with other weights than those that training goes on from."""

from collections.abc import Iterator
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
