"""Full fine-tuning: all parameters are trained, none are added."""

from torch import nn

from ablatio import pefts


@pefts.register("none")
class Whole:
    """Train all parameters, and add none.  Source: ordinary training."""

    def apply(self, model: nn.Module, seed: int) -> None:
        pass
