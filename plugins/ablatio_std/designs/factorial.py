"""Designs computed directly: all combinations, one change at a time, a list of arms."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ablatio import designs
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm


@designs.register("full")
class Full:
    """All combinations of the values: L_1 * L_2 * ... * L_k arms for axes with L_i values.

    All effects and interactions can be estimated separately.  Source: Fisher, The Design of Experiments, 1935.
    """

    def __init__(self, axes: Sequence[Any]) -> None:
        self.axes = axes

    def count(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    def arms(self) -> Iterable[Arm]:
        keys = [axis.key for axis in self.axes]
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield dict(zip(keys, values, strict=True))


@designs.register("one_at_a_time")
class OneAtATime:
    """The baseline, and arms that differ from it in one axis, for each other value: 1 + sum_i (L_i - 1) arms.

    The usual ablation table.  It cannot detect interactions, such as a value that helps only together with another.
    Source: Daniel, One-at-a-Time Plans, 1973, doi:10.1080/01621459.1973.10482433.
    """

    factors = False
    single_changes = True

    def __init__(self, axes: Sequence[Any], baseline: Arm) -> None:
        self.axes, self.baseline = axes, baseline

    def count(self) -> int:
        # The baseline's own value is not run again.
        return 1 + sum(len(axis.values) - (self.baseline[axis.key] in axis.values) for axis in self.axes)

    def arms(self) -> Iterable[Arm]:
        yield self.baseline
        for axis in self.axes:
            for value in axis.values:
                if value != self.baseline[axis.key]:
                    yield {**self.baseline, axis.key: value}


@designs.register("paired")
class Paired:
    """A list of arms: arm i has the i-th value of every axis; L arms for axes with L values.

    Source: Box, Hunter and Hunter, Statistics for Experimenters, 2005, section 3.2.
    """

    factors = False

    def __init__(self, axes: Sequence[Any]) -> None:
        lengths = {axis.key: len(axis.values) for axis in axes}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise UserError(
                f"design=paired pairs the i-th values of all axes and needs axes with equally many values: {listed}\n"
                "    try: design=full"
            )
        self.axes = axes

    def count(self) -> int:
        return len(self.axes[0].values) if self.axes else 1

    def arms(self) -> Iterable[Arm]:
        for values in zip(*(axis.values for axis in self.axes), strict=True):
            yield dict(zip((axis.key for axis in self.axes), values, strict=True))
