"""Registers a name that is already registered."""

from torch import nn

from ablatio import norms


@norms.register("rmsnorm")
class Mine(nn.Identity):
    """x.  (..., d_model) -> same."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
