"""Which effects explain a screening study: main effects, or one interaction that is partially aliased with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablatio.report.statistics.contrasts import EXACT, Columns, Layout, Model, cosine, orthonormal

Array = NDArray[np.floating[Any]]
TINY = 1e-12  # squared length below which a column lies in the span of the others
MOST = 200.0  # largest tolerance: a larger ratio is evidence in any study
AS_WELL = 20.0  # ratio of likelihoods up to which one explanation is about as good as another


@dataclass(frozen=True, slots=True)
class Alternative:
    """An interaction that explains the study without a certain effect.

    ratio  exp((C(with) - C(without)) / 2) for the best models with the effect, and with this interaction instead of
           it; C = RSS / s^2 + 2 k.  Above 1 the interaction explains the study better; 0.05: 20 times less likely
    terms    number of terms of its model: 1 if the interaction alone explains the study
    """

    name: str
    ratio: float
    terms: int


def as_well(critical: float) -> float:
    """Ratio of likelihoods within which explanations are about equally good, in a study with this critical |t|.

    A main effect that is pure noise beside a true interaction improves C by t^2 - 2; it must not be claimed unless |t|
    exceeds the critical value of the whole study.  nan: Lenth's method, whose critical value stands for its small df.
    """
    return AS_WELL if math.isnan(critical) else min(MOST, max(AS_WELL, math.exp((critical**2 - 2) / 2)))


def alternatives(
    model: Model, claimed: Sequence[str], sd: float, tolerance: float = AS_WELL
) -> Mapping[str, tuple[Alternative, ...]]:
    """Return for each claimed effect the interactions that explain the same data without it, the best first.

    Compared are the model of all claimed effects and, for each two-way interaction, the best model that it starts,
    grown by main effects one at a time (Akaike's criterion with known variance, C = RSS / s^2 + 2 k), with no more
    degrees of freedom than the claimed effects have together.  An explanation whose likelihood is within a factor of
    `tolerance` of another's cannot be dismissed.  Interactions that are fully aliased with an effect are left out: no
    data of this design can tell them apart.

    claimed  names of main effects, or of interactions that are not separately estimable
    sd       standard deviation of a run

    Sources: Hamada and Wu 1992, doi:10.1080/00224065.1992.11979383 (partial aliasing); Burnham and Anderson, Model
    Selection and Multimodel Inference, 2002, section 2.9 (relative likelihood of models).
    """
    if not claimed or not sd > 0:
        return {}
    search = _Search(model, claimed, sd)
    search.tolerance = tolerance
    return {name: search.without(name) for name in claimed}


class _Search:
    """Models of few terms in the space of the differences between arms."""

    tolerance = AS_WELL

    def __init__(self, model: Model, claimed: Sequence[str], sd: float) -> None:
        self.terms, self.bases, space = _space(model.layout)
        self.y = space.T @ model.y / sd
        self.claimed = list(claimed)
        self.size = sum(self.bases[name].shape[1] for name in claimed)
        self.mains = [name for name, term in self.terms.items() if len(term.factors) == 1]
        self.crossings = [name for name, term in self.terms.items() if len(term.factors) == 2]
        self._grown = {name: self._grow(name) for name in self.crossings}
        self._plain = self.cost(self.claimed)

    def without(self, effect: str) -> tuple[Alternative, ...]:
        """Interactions in place of an effect, the best first; those that are fully aliased with it left out."""
        term = self.terms[effect]
        best = min([self._plain, *(c for c, names in self._grown.values() if effect in names)])
        limit = best + 2 * math.log(self.tolerance)
        near = [n for n in self.crossings if n != effect and EXACT < cosine(term, self.terms[n]) <= 1 - EXACT]
        near.sort(key=lambda name: self._grown[name][0])
        found: list[Alternative] = []
        for name in near:
            cost, names = self._grown[name]
            if effect in names and (cost <= limit or not found):  # without the effect a model can only fit worse
                cost, names = self._grow(name, effect)
            if effect not in names:
                found.append(Alternative(name, math.exp(min(50.0, (best - cost) / 2)), len(names)))
        return tuple(sorted(found, key=lambda a: -a.ratio))

    def cost(self, names: Sequence[str]) -> float:
        """C = RSS / s^2 + 2 k of a model."""
        columns = np.hstack([self.bases[name] for name in names])
        left = self.y - columns @ np.linalg.lstsq(columns, self.y)[0]
        return float(left @ left) + 2.0 * int(columns.shape[1])

    def _grow(self, first: str, excluded: str = "") -> tuple[float, tuple[str, ...]]:
        """(cost, terms) of the best model that starts with `first`, with main effects added one at a time."""
        names, pool = [first], [n for n in self.mains if n != excluded]
        left = np.hstack([self.bases[first][:, :0], *(self.bases[n] for n in pool)])
        blocks = _slices(tuple(self.bases[n].shape[1] for n in pool))
        y, used, basis = self.y, 0, self.bases[first]
        while True:
            q = _orthonormal(basis)
            y, left = y - q @ (q.T @ y), left - q @ (q.T @ left)
            used += basis.shape[1]
            cost = float(y @ y) + 2 * used
            gains = _gains(left, blocks, y)
            best = int(gains.argmax()) if len(gains) else 0
            if (
                not len(gains)
                or gains[best] <= 0
                or used + blocks[best].stop - blocks[best].start > max(self.size, used)
            ):
                return cost, tuple(names)
            basis = left[:, blocks[best]]
            names.append(pool[best])


@lru_cache(maxsize=4)
def _space(layout: Layout) -> tuple[Mapping[str, Columns], Mapping[str, Array], Array]:
    """Terms by name, their bases in the space of the differences between arms, and that space as columns of runs."""
    space = orthonormal(np.hstack([t.values for t in layout.known]), layout.nuisance)
    return {t.name: t for t in layout.known}, {t.name: space.T @ t.basis for t in layout.known}, space


@lru_cache(maxsize=64)
def _slices(sizes: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum([0, *sizes])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def _gains(left: Array, blocks: Sequence[slice], y: Array) -> Array:
    """Fall of the criterion for each block of columns that is added to the model."""
    if left.shape[1] == len(blocks):  # one column each
        lengths = (left**2).sum(0)
        known = lengths > TINY
        return np.where(known, (left.T @ y) ** 2 / np.where(known, lengths, 1.0), 0.0) - 2.0
    return np.array([_explained(left[:, b], y) - 2.0 * (b.stop - b.start) for b in blocks])


def _orthonormal(columns: Array) -> Array:
    if columns.shape[1] == 1:
        flat = columns.ravel()
        length = math.sqrt(flat @ flat)
        return columns / length if length**2 > TINY else columns[:, :0]
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(u[:, s**2 > TINY])


def _explained(columns: Array, y: Array) -> float:
    """Sum of squares of y in the span of the columns."""
    q = _orthonormal(columns)
    return float(((q.T @ y) ** 2).sum())
