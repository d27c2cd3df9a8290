from collections.abc import Mapping, Sequence
from typing import Annotated

from ablatio import Positive, mixtures
from ablatio.data.mixtures import Pool


@mixtures.register("square_root", paper="arXiv:1907.05019")
class SquareRoot:
    """Shares in proportion to n^power, n the training tokens of a source."""

    def __init__(self, pools: Sequence[Pool], *, power: Annotated[float, Positive] = 0.5) -> None:
        self.pools, self.power = pools, power

    def shares(self) -> Mapping[str, float]:
        """{source: share}, with the sum 1."""
        sizes = {pool.name: pool.tokens**self.power for pool in self.pools}
        return {name: size / sum(sizes.values()) for name, size in sizes.items()}
