"""Designs that need no table: all combinations, one change at a time, a list of arms."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ablatio import designs
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm


@designs.register("full")
class Full:
    """All combinations of the values: L_1 * L_2 * ... * L_k arms for axes of L_i values.

    Every effect and every interaction can be told from the others.  Source: Fisher, The Design of Experiments, 1935.
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
    """The baseline, and each other value of each axis beside it: 1 + sum_i (L_i - 1) arms.

    The usual ablation table.  It sees no interactions: a value that helps only beside another one stays hidden.
    Source: Daniel, One-at-a-Time Plans, 1973, doi:10.1080/01621459.1973.10482433.
    """

    factors = False
    single_changes = True

    def __init__(self, axes: Sequence[Any], baseline: Arm) -> None:
        self.axes, self.baseline = axes, baseline

    def count(self) -> int:
        return 1 + sum(len(axis.values) - (self.baseline[axis.key] in axis.values) for axis in self.axes)

    def arms(self) -> Iterable[Arm]:
        yield self.baseline
        for axis in self.axes:
            for value in axis.values:
                if value != self.baseline[axis.key]:
                    yield {**self.baseline, axis.key: value}


@designs.register("paired")
class Paired:
    """A list of arms: the i-th value of every axis together, L arms.

    Source: Box, Hunter and Hunter, Statistics for Experimenters, 2005, section 3.2.
    """

    factors = False

    def __init__(self, axes: Sequence[Any]) -> None:
        lengths = {axis.key: len(axis.values) for axis in axes}
        if len(set(lengths.values())) > 1:
            came = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise UserError(
                f"design=paired takes the i-th value of every axis: {came}\n    try: as many values for each, or "
                "design=full"
            )
        self.axes = axes

    def count(self) -> int:
        return len(self.axes[0].values) if self.axes else 1

    def arms(self) -> Iterable[Arm]:
        for values in zip(*(axis.values for axis in self.axes), strict=True):
            yield dict(zip((axis.key for axis in self.axes), values, strict=True))
