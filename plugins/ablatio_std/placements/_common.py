"""Type of the sublayers that placements wrap."""

from collections.abc import Callable

from torch import Tensor

Sublayer = Callable[[Tensor], Tensor]  # attention or feed-forward: (B, T, D) -> same
