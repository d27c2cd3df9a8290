"""Curricula of sources: skills one after the other, and the best data at the end."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from ablatio import Fraction, Range, curricula, rule
from ablatio.errors import UserError

rule(
    when="'shares' in facts.curriculum.uses and mixture is None and facts.source.combines",
    why="curriculum={curriculum.name} changes the shares of several sources, and no mixture is chosen",
    fix="mixture=proportional",
    where="mixture",
)
rule(
    when="'shares' in facts.curriculum.uses and mixture is None and not facts.source.combines",
    why="curriculum={curriculum.name} changes the shares of several sources, and source={source.name} is one; "
    "source=several mixture=proportional draw from several",
    fix="curriculum=null",
    where="curriculum",
)


@curricula.register("skills", paper="arXiv:2307.14430")
class Skills:
    """Sources as skills that are learned in an order: each is trained on in its own stage of equal length.

    In its stage a skill has the share 1 - `rehearsal`, and the skills before it divide the rehearsal equally.  The
    order is given; Skill-it also learns it, from held-out losses during training.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        order: Annotated[tuple[str, ...], "sources in the order of learning; empty: as they are given"] = (),
        rehearsal: Annotated[float, Range(0, 1, open_high=True), "share of the earlier skills in a stage"] = 0.2,
    ) -> None:
        self.order, self.rehearsal = [*(order or names)], rehearsal
        unknown, twice = [name for name in self.order if name not in names], len({*self.order}) < len(self.order)
        if unknown or twice:
            told = f"there is no source {unknown[0]!r}" if unknown else "a source occurs twice"
            raise UserError(f"curriculum.order: {told}; the sources are {', '.join(names)}\n"
                            f"    try: curriculum.order=[{','.join(names)}]")  # fmt: skip

    def shares(self, progress: float, base: Mapping[str, float]) -> Mapping[str, float]:
        stage = min(len(self.order) - 1, int(progress * len(self.order)))
        before = self.order[:stage]
        found = dict.fromkeys(base, 0.0) | {name: self.rehearsal / len(before) for name in before}
        return found | {self.order[stage]: 1.0 - (self.rehearsal if before else 0.0)}


@curricula.register("anneal", paper="arXiv:2406.03476")
class Anneal:
    """The mixture changes to the best data at the end of training, while the learning rate falls.

    From `start` on, the source `on` has the share `share`, and the others divide the rest as in the mixture; with
    `ramp`, the share grows along a line from `start` to the end.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        on: Annotated[str, "the best source; empty: the last"] = "",
        start: Annotated[float, Fraction, "place of training at which it begins"] = 0.8,
        share: Annotated[float, Fraction, "share of the best source"] = 0.7,
        ramp: Annotated[bool, "let the share grow to the end of training"] = False,
    ) -> None:
        if on and on not in names:
            raise UserError(f"curriculum.on: there is no source {on!r}; the sources are {', '.join(names)}\n"
                            f"    try: curriculum.on={names[-1]}")  # fmt: skip
        self.on, self.start, self.share, self.ramp = on or names[-1], start, share, ramp

    def shares(self, progress: float, base: Mapping[str, float]) -> Mapping[str, float]:
        if progress < self.start:
            return base
        done = (progress - self.start) / max(1e-9, 1 - self.start) if self.ramp else 1.0
        best = base[self.on] + (self.share - base[self.on]) * min(1.0, done)
        # 0 if the mixture has the best source alone: nothing is left to divide.
        rest = 1 - base[self.on]
        # The proportions among the others stay those of the mixture.
        others = {name: (1 - best) * share / rest for name, share in base.items() if name != self.on} if rest else {}
        return {**base, **others, self.on: best if rest else 1.0}
