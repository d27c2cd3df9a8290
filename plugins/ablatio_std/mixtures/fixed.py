"""Mixtures that follow from given shares and from the sizes of the sources."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from ablatio import NonNegative, Positive, Schedulable, mixtures, rule
from ablatio.data.mixtures import Pool, shares_of
from ablatio.errors import UserError

rule(
    when="mixture is not None and not facts.source.combines",
    why="mixture={mixture.name} draws from several sources, and source={source.name} is one; source=several "
    "source.of=[sotu,zh_classics] are two",
    fix="mixture=null",
    where="mixture",
)


@mixtures.register("weights", paper="arXiv:2302.13971")
class Weights:
    """Given shares of the training tokens, in the order of `source.of`; the sum is 1.  LLaMA's table is of this kind.

    A source with a large share and few tokens is repeated: the summary counts the epochs of each.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        weights: Annotated[
            tuple[float, ...], NonNegative, Schedulable(), "shares of the sources; empty: equal ones"
        ] = (),
    ) -> None:
        self.names, self.weights = [pool.name for pool in pools], weights

    def shares(self) -> Mapping[str, float]:
        equal = [1 / len(self.names)] * len(self.names)
        return shares_of(self.weights or equal, self.names, "mixture.weights")


rule(
    when="mixture.name == 'weights' and len(mixture.weights) > 0",
    unless="len(mixture.weights) == len(source.of)",
    why="mixture.weights has {len(mixture.weights)} shares, and source.of has {len(source.of)} sources",
    fix="mixture.weights=[]",
    where="mixture.weights",
)
rule(
    when="mixture.name == 'weights' and len(mixture.weights) > 0",
    unless="abs(sum(mixture.weights) - 1) < 0.000001",
    why="the shares in mixture.weights sum to {sum(mixture.weights)}, expected 1",
    fix="mixture=proportional",
    where="mixture.weights",
)


@mixtures.register("proportional", paper="arXiv:1910.10683")
class Proportional:
    """Shares in proportion to the training tokens, each source counted with at most `cap` of them (T5)."""

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        cap: Annotated[float | None, Positive, "most tokens that a source counts with; null: all"] = None,
    ) -> None:
        # The cap keeps a huge source from taking all: above it, sources count alike.
        self.sizes = {pool.name: min(float(pool.tokens), cap or float("inf")) for pool in pools}

    def shares(self) -> Mapping[str, float]:
        return scaled(self.sizes)


@mixtures.register("temperature", paper="arXiv:1907.05019")
class Temperature:
    """Shares in proportion to n^(1/T), n the training tokens of a source: T = 1 is proportional, T = inf equal.

    `cap` is the most tokens that a source counts with, as with mixture=proportional.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        temperature: Annotated[float, Positive, "T; multilingual models take 3.3 to 5"] = 5.0,
        cap: Annotated[float | None, Positive, "most tokens that a source counts with; null: all"] = None,
    ) -> None:
        self.sizes = {pool.name: min(float(pool.tokens), cap or float("inf")) for pool in pools}
        self.temperature = temperature

    def shares(self) -> Mapping[str, float]:
        return scaled({name: size ** (1 / self.temperature) for name, size in self.sizes.items()})


@mixtures.register("repeat", paper="arXiv:2305.16264")
class Repeat:
    """Shares in proportion to epochs * training tokens: when source i has been passed e_i times, so has each other.

    An epoch here is a count of tokens.  A budget of sum_i e_i * n_i tokens makes exactly these epochs.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        epochs: Annotated[tuple[float, ...], NonNegative, "passes of each source; empty: one of each"] = (),
    ) -> None:
        self.pools, self.epochs = pools, epochs

    def shares(self) -> Mapping[str, float]:
        epochs = self.epochs or (1.0,) * len(self.pools)
        names = ", ".join(pool.name for pool in self.pools)
        if len(epochs) != len(self.pools) or not any(epochs):
            raise UserError(
                f"mixture.epochs: got {list(epochs)}; expected a number for each of {names}, not all 0\n"
                f"    try: mixture.epochs=[{','.join('1' for _ in self.pools)}]"
            )
        return scaled({pool.name: e * pool.tokens for pool, e in zip(self.pools, epochs, strict=True)})


def scaled(sizes: Mapping[str, float]) -> dict[str, float]:
    """Numbers in proportion to these, with the sum 1."""
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
