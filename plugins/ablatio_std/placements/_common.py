"""What placements share."""

from collections.abc import Callable

from torch import Tensor

Sublayer = Callable[[Tensor], Tensor]
