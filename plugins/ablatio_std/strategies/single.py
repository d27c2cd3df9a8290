"""One device."""

from ablatio import strategies
from ablatio.model.strategy import Strategy


@strategies.register("single")
class Single(Strategy):
    """One process on one device.  Source: plain training."""

    several = False
