from collections.abc import Iterator, Sequence

from ablatio import designs
from ablatio.registry.kinds.search_space import Arm, Axis


@designs.register("first_and_last")
class FirstAndLast:
    """Two arms: every axis at its first value, and every axis at its last.

    Source: Box, Hunter and Hunter, Statistics for Experimenters, 2005.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = axes

    def count(self) -> int:
        return 2

    def arms(self) -> Iterator[Arm]:
        yield {axis.key: axis.values[0] for axis in self.axes}
        yield {axis.key: axis.values[-1] for axis in self.axes}
