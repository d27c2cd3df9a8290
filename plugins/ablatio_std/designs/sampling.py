"""Samples of a large space.  An axis may be an interval: optimizer.lr='tag(log,interval(1e-4,1e-2))'."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from ablatio import NonNegative, Positive, designs
from ablatio.registry.kinds.search_space import Arm
from ablatio_std.designs._common import tables


@designs.register("random")
class Random:
    """N arms drawn uniformly from all combinations, without repetition; with an interval N independent draws.

    Source: Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, JMLR 13, 2012.
    """

    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        runs: Annotated[int, Positive, "number N of arms"] = 20,
        seed: Annotated[int, NonNegative, "seed of the sample"] = 0,
    ) -> None:
        self.axes, self.seed = axes, seed
        self.discrete = not any(axis.interval for axis in axes)
        self.total = math.prod(len(axis.values) for axis in axes)
        self.runs = min(runs, self.total) if self.discrete else runs

    def count(self) -> int:
        return self.runs

    def arms(self) -> Iterable[Arm]:
        generator = random.Random(self.seed)
        if not self.discrete:
            for _ in range(self.runs):
                yield {axis.key: axis.at(generator.random()) for axis in self.axes}
            return
        # A combination is numbered in mixed radix, so that none of them has to be enumerated.
        # Sorted, so that arms that share their first values stand together in the tables.
        for number in sorted(generator.sample(range(self.total), self.runs)):
            arm = {}
            for axis in reversed(self.axes):
                number, i = divmod(number, len(axis.values))
                arm[axis.key] = axis.values[i]
            yield {axis.key: arm[axis.key] for axis in self.axes}


@designs.register("latin_hypercube", paper="doi:10.1080/00401706.1979.10489755")
class LatinHypercube:
    """N arms; each axis is divided into N equal parts, and each part is sampled once: u_i = (pi(i) + U) / N.

    If an axis has fewer values than there are arms, each value occurs about equally often.
    """

    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        runs: Annotated[int, Positive, "number N of arms"] = 20,
        seed: Annotated[int, NonNegative, "seed of the sample"] = 0,
    ) -> None:
        self.axes, self.runs, self.seed = axes, runs, seed

    def count(self) -> int:
        return self.runs

    def arms(self) -> Iterable[Arm]:
        if not self.axes:
            return
        for row in tables().lhs(len(self.axes), samples=self.runs, seed=self.seed):
            # at() takes numbers below 1.
            yield {axis.key: axis.at(min(float(u), 1 - 1e-12)) for axis, u in zip(self.axes, row, strict=True)}
