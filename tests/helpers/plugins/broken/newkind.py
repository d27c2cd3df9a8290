"""A plugin that adds a kind, and how the common suites evaluate its parts."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import Positive
from ablatio.registry.registry import PartSpec, Registry
from ablatio.testing import sample_parts
from ablatio.testing.observe import observes

samplers: Registry[Any] = Registry("sampler", "Picks a token.", wiring=("width",), methods=("__call__",))


@observes("sampler")
def _look(entry: PartSpec, knobs: Mapping[str, Any]) -> Tensor:
    return sample_parts.made(entry, knobs, width=8)(torch.linspace(-1, 1, 8))


@samplers.register("steady", paper="doi:10.0/0")
class Steady:
    """softmax(x / temperature).  (width,) -> same."""

    def __init__(self, width: int, *, temperature: Annotated[float, Positive] = 1.0) -> None:
        self.temperature = temperature

    def __call__(self, x: Tensor) -> Tensor:
        return (x / self.temperature).softmax(-1)


@samplers.register("stuck", paper="doi:10.0/0")
class Stuck:
    """softmax(x), whatever the temperature.  (width,) -> same."""

    def __init__(self, width: int, *, temperature: Annotated[float, Positive] = 1.0) -> None:
        self.temperature = temperature

    def __call__(self, x: Tensor) -> Tensor:
        return x.softmax(-1)
