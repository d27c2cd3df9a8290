"""No method: all weights train.  And methods that let some of the base's own vectors train."""

from torch import nn

from ablatio import pefts


@pefts.register("none")
class Whole:
    """All weights train, none are added.  Source: plain training."""

    def apply(self, model: nn.Module, seed: int) -> None:
        pass
