"""Weights that a model holds for a while in place of its own, to score or save an average of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exchanged_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Context in which the model holds these weights, by parameter name, in the dtypes of its own."""
    pairs = [(p, weights[name]) for name, p in model.named_parameters() if name in weights]
    trained = [p.data for p, _ in pairs]
    for p, weight in pairs:
        p.data = weight.to(p.data)
    try:
        yield
    finally:
        for (p, _), weight in zip(pairs, trained, strict=True):
            p.data = weight
