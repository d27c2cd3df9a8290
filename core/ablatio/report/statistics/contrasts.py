"""Model columns of factors, and which effects a design cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
EXACT = 1e-8  # tolerance within which a cosine counts as 0 or 1


@dataclass(frozen=True, slots=True)
class Columns:
    """A main effect or an interaction as columns of the design matrix.

    contrast  (levels, columns): effect of each level, or combination of levels, from the columns' coefficients; the
              effects sum to zero over the levels of each factor
    basis     orthonormal basis of what remains of the columns after mean and seeds are projected out
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    values: Array  # (rows, columns)
    contrast: Array
    basis: Array

    @property
    def name(self) -> str:
        """Factors joined by ` x `."""
        return " x ".join(self.factors)


@dataclass(frozen=True, eq=False)
class Layout:
    """The columns of a fit, without any score; equal only to itself, so that what follows from it can be cached.

    nuisance  (runs, seeds) columns of the mean and the seeds
    known     main effects and all two-way interactions, estimable or not
    fitted    the terms that are estimated together
    """

    nuisance: Array
    known: Sequence[Columns]
    fitted: Sequence[Columns]

    @cached_property
    def design(self) -> Array:
        """(runs, columns) of mean, seeds and fitted terms."""
        return np.hstack([self.nuisance, *(t.values for t in self.fitted)])

    @cached_property
    def slices(self) -> list[slice]:
        """Columns of the design that belong to each fitted term."""
        ends = np.cumsum([self.nuisance.shape[1], *(t.values.shape[1] for t in self.fitted)])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Model:
    """Runs with a score, and the columns of their least-squares fit.

    arms    settings of each run
    y       (runs,) scores
    layout  runs with equal settings and seeds share it
    """

    arms: Sequence[Mapping[str, str]]
    y: Array
    layout: Layout


def model_of(
    arms: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    values: Sequence[float],
    *,
    interactions: bool = True,
    levels: Mapping[str, Sequence[str]] | None = None,
) -> Model:
    """Return the columns of mean + seed + main effects + two-way interactions for the runs that have a value.

    If there are too few arms for all interactions, only those orthogonal to everything else are fitted, under their
    first name.

    levels  order of the levels of each factor; without it the order of appearance

    Raises:
        ValueError: fewer than two runs have a value.
    """
    kept = [i for i, v in enumerate(values) if math.isfinite(v)]
    if len(kept) < 2:
        raise ValueError(f"effects need two runs or more that did not diverge; {len(kept)} came")
    rows = tuple(tuple(arms[i].items()) for i in kept)
    order = tuple((key, tuple(names)) for key, names in (levels or {}).items())
    layout = _layout(rows, tuple(seeds[i] for i in kept), order, interactions)
    return Model([arms[i] for i in kept], np.array([values[i] for i in kept], dtype=np.float64), layout)


@lru_cache(maxsize=4)
def _layout(
    rows: tuple[tuple[tuple[str, str], ...], ...],
    seeds: tuple[int, ...],
    levels: tuple[tuple[str, tuple[str, ...]], ...],
    interactions: bool,
) -> Layout:
    """Columns of a model; they depend on the design alone, so simulations compute them once."""
    nuisance = block(seeds)
    known = terms([dict(row) for row in rows], nuisance, 2, dict(levels))
    chosen = known if interactions else [t for t in known if len(t.factors) == 1]
    return Layout(nuisance, known, told_apart(chosen, nuisance))


def told_apart(known: Sequence[Columns], nuisance: Array) -> list[Columns]:
    """Return all terms if they can be estimated together; else main effects and the terms orthogonal to all others."""
    if independent(known, nuisance):
        return list(known)
    found: list[Columns] = []
    for term in known:
        if len(term.factors) == 1:
            if independent([*found, term], nuisance):
                found.append(term)
        elif independent([term], nuisance):
            shared = [cosine(term, other) for other in known if other is not term]
            alone = all(c < EXACT or c > 1 - EXACT for c in shared)
            if alone and all(cosine(term, other) < EXACT for other in found):
                found.append(term)
    return found


def block(seeds: Sequence[Any]) -> Array:
    """Columns of the mean and, if there are several, of the seeds: (rows, seeds)."""
    return np.hstack([np.ones((len(seeds), 1)), _code(seeds)[1]])


def terms(
    arms: Sequence[Mapping[str, str]],
    nuisance: Array,
    order: int,
    levels_of: Mapping[str, Sequence[str]] | None = None,
) -> list[Columns]:
    """Main effects and, for order 2, all two-way interactions of the factors that vary and that every arm has."""
    common = [k for k in arms[0] if all(k in arm for arm in arms) and len({arm[k] for arm in arms}) > 1]
    coded = {k: _code([arm[k] for arm in arms], (levels_of or {}).get(k, ())) for k in common}
    found = []
    for size in range(1, order + 1):
        for chosen in combinations(common, size):
            values = reduce(_products, [coded[k][1] for k in chosen])
            contrast = reduce(lambda a, b: np.kron(a, b), [_contrast(len(coded[k][0])) for k in chosen])
            levels = tuple(product(*(coded[k][0] for k in chosen)))
            found.append(Columns(chosen, levels, values, contrast, orthonormal(values, nuisance)))
    return found


def orthonormal(values: Array, nuisance: Array) -> Array:
    """Orthonormal basis of the part of the columns that is orthogonal to `nuisance`."""
    known = np.linalg.qr(nuisance)[0]
    left = values - known @ (known.T @ values)
    u, s, _ = np.linalg.svd(left, full_matrices=False)
    return np.asarray(u[:, s > EXACT * max(1.0, float(np.linalg.norm(values)))])


def cosine(a: Columns, b: Columns) -> float:
    """Largest cosine between two effects: 1 if they share a direction (aliased), 0 if they are orthogonal."""
    if not (a.basis.size and b.basis.size):
        return 0.0
    if a.basis.shape[1] == 1 == b.basis.shape[1]:
        return abs(float(a.basis[:, 0] @ b.basis[:, 0]))
    return float(np.linalg.svd(a.basis.T @ b.basis, compute_uv=False)[0])


def independent(chosen: Sequence[Columns], nuisance: Array) -> bool:
    """True if all coefficients can be estimated together."""
    design = np.hstack([nuisance, *(t.values for t in chosen)])
    return bool(np.linalg.matrix_rank(design) == design.shape[1])


def _code(values: Sequence[Any], order: Sequence[Any] = ()) -> tuple[list[Any], Array]:
    """Levels in the given order, else of appearance; their sum-to-zero columns (the last level is -1 in each)."""
    present = set(values)
    levels = list(dict.fromkeys([*(v for v in order if v in present), *values]))
    return levels, _contrast(len(levels))[[levels.index(v) for v in values]]


def _contrast(levels: int) -> Array:
    return np.vstack([np.eye(levels - 1), -np.ones((1, levels - 1))])


def _products(a: Array, b: Array) -> Array:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
