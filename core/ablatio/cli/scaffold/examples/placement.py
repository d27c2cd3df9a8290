from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from ablatio import Positive, placements


@placements.register("damped", paper="arXiv:2003.04887")
class Damped:
    """x + scale * f(norm(x)): a pre-norm layer whose update is scaled by a constant.  (B, T, D) -> same."""

    gain = 1.0

    def __init__(self, *, scale: Annotated[float, Positive, "factor on each update"] = 0.5) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return x + self.scale * sublayer(norm(x))
