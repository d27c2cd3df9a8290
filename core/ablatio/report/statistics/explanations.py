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
TIED = 9  # decimals of criteria beyond which a difference is rounding: ties keep the order of the design
TINY = 1e-12  # squared length below which a column lies in the span of the others
MOST = 200.0  # largest tolerance: a larger ratio is evidence in any study
Grown = tuple[float, tuple[str, ...]]  # criterion and terms of a model
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
        # Two-level factors have one column each, and all models of a study can grow at once.
        single = all(basis.shape[1] == 1 for basis in self.bases.values())
        self.grown = self._grown_together if single else self._grown_in_turn
        self._grown = self.grown(self.crossings)
        self._plain = self.cost(self.claimed)

    def without(self, effect: str) -> tuple[Alternative, ...]:
        """Interactions in place of an effect, the best first; those that are fully aliased with it left out."""
        term = self.terms[effect]
        best = min([self._plain, *(c for c, names in self._grown.values() if effect in names)])
        limit = best + 2 * math.log(self.tolerance)
        near = [n for n in self.crossings if n != effect and EXACT < cosine(term, self.terms[n]) <= 1 - EXACT]
        near.sort(key=lambda name: round(self._grown[name][0], TIED))
        # Without the effect a model can only fit worse, so that of those beyond the limit the best is enough.
        anew = [name for name in near if effect in (grown := self._grown[name])[1] and grown[0] <= limit]
        others = self.grown(anew, effect)
        found: list[tuple[float, Alternative]] = []
        for name in near:
            cost, names = others.get(name, self._grown[name])
            if effect in names and not found:
                cost, names = self._grow(name, effect)
            if effect not in names:
                ratio = math.exp(min(50.0, (best - cost) / 2))
                found.append((round(cost, TIED), Alternative(name, ratio, len(names))))
        return tuple(alternative for _, alternative in sorted(found, key=lambda pair: pair[0]))

    def cost(self, names: Sequence[str]) -> float:
        """C = RSS / s^2 + 2 k of a model."""
        columns = np.hstack([self.bases[name] for name in names])
        left = self.y - columns @ np.linalg.lstsq(columns, self.y)[0]
        return float(left @ left) + 2.0 * int(columns.shape[1])

    def _grown_in_turn(self, firsts: Sequence[str], excluded: str = "") -> Mapping[str, Grown]:
        return {first: self._grow(first, excluded) for first in firsts}

    def _grown_together(self, firsts: Sequence[str], excluded: str = "") -> Mapping[str, Grown]:
        """As `_grow` for each of the first terms, all in the same steps; every term has one column."""
        found: dict[str, Grown] = {}
        if not firsts:
            return found
        names = [[first] for first in firsts]
        basis = np.array([self.bases[first][:, 0] for first in firsts])  # (models, directions)
        pool = np.array([self.bases[name][:, 0] for name in self.mains])
        left = np.broadcast_to(pool, (len(names), *pool.shape))  # (models, main effects, directions)
        y = np.broadcast_to(self.y, (len(names), len(self.y)))
        free = np.array([name != excluded for name in self.mains])
        for used in range(1, max(self.size, 1) + 1):
            lengths = np.einsum("md,md->m", basis, basis)
            q = np.where(lengths > TINY, 1 / np.sqrt(np.maximum(lengths, TINY)), 0.0)[:, None] * basis
            y = y - np.einsum("md,md->m", q, y)[:, None] * q
            left = left - (left @ q[:, :, None]) * q[:, None, :]
            costs = np.einsum("md,md->m", y, y) + 2 * used
            lengths = np.einsum("mpd,mpd->mp", left, left)
            shared = (left @ y[:, :, None])[:, :, 0]
            gains = np.where(free & (lengths > TINY), shared**2 / np.maximum(lengths, TINY), 0.0) - 2.0
            best = gains.round(TIED).argmax(1)
            going = (gains.max(1) > 0) & (used < self.size)
            ended = zip(names, costs.tolist(), going, strict=True)
            found |= {of[0]: (cost, tuple(of)) for of, cost, on in ended if not on}
            names = [[*of, self.mains[i]] for of, i, on in zip(names, best.tolist(), going, strict=True) if on]
            if not names:
                break
            basis, left, y = left[going, best[going]], left[going], y[going]
        return found

    def _grow(self, first: str, excluded: str = "") -> Grown:
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
            best = int(gains.round(TIED).argmax()) if len(gains) else 0
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
