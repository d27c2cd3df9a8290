"""Main effects and two-way interactions of settings: least squares with the seed as a block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablatio.report.statistics.contrasts import EXACT, Columns, Layout, Model, cosine, model_of

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Effect:
    """Deviation of a level, or combination of levels, from the mean of all levels, with a 95 % interval."""

    levels: tuple[str, ...]
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Term:
    """A main effect or an interaction.

    p            of the F-test that it has no effect; not corrected
    aliases      effects that this design cannot tell from it: the estimate is the sum of all of them
    touched_by   effects that it partly shares (Plackett-Burman): large ones bias it
    """

    factors: tuple[str, ...]
    effects: tuple[Effect, ...]
    p: float
    aliases: tuple[str, ...]
    touched_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """Factors joined by ` x `."""
        return " x ".join(self.factors)

    @property
    def difference(self) -> float:
        """Second level minus first for a factor with two levels, else highest minus lowest level."""
        values = [e.value for e in self.effects]
        return values[1] - values[0] if len(values) == 2 else max(values) - min(values)


@dataclass(frozen=True, slots=True)
class Factors:
    """A fitted study.

    sd, df      residual standard deviation and its degrees of freedom; df = 0: no intervals, no p
    terms       main effects, then the interactions that the design can estimate
    left_out    effects that it cannot estimate, and factors that some arms do not have
    contrasts   one number per degree of freedom, on the scale of a two-level effect (for `half_normal`)
    diverged    rows without a value
    """

    mean: float
    sd: float
    df: int
    terms: tuple[Term, ...]
    left_out: tuple[str, ...]
    contrasts: tuple[tuple[str, float], ...]
    diverged: int


def effects(
    arms: Sequence[Mapping[str, str]], seeds: Sequence[int], values: Sequence[float], *, interactions: bool = True
) -> Factors:
    """Fit mean + seed + main effects + two-way interactions, with levels that sum to zero.

    Each row is a run: its arm (factor -> level), its seed, its score (nan: diverged; counted and left out).  If there
    are too few arms for all interactions, only those orthogonal to everything else are kept, under their first name.

    Raises:
        ValueError: fewer than two runs have a value.
    """
    return fit(model_of(arms, seeds, values, interactions=interactions), len(values))


def fit(model: Model, runs: int | None = None) -> Factors:
    """Fit a model by least squares.  runs: number of runs including the diverged ones, which it leaves out."""
    y, layout = model.y, model.layout
    inverse, shared = _inverse(layout), _shared(layout)
    beta: Array = np.linalg.lstsq(layout.design, y)[0]
    df = len(y) - layout.design.shape[1]
    sd = math.sqrt(float(((y - layout.design @ beta) ** 2).sum()) / df) if df else math.nan
    found = [
        _term(term, shared[term.name], beta[here], inverse[here, here], sd, df)
        for term, here in zip(layout.fitted, layout.slices, strict=True)
    ]
    named = {n for t in found for n in (t.name, *t.aliases)}
    first = model.arms[0]
    everything = dict.fromkeys(k for arm in model.arms for k in arm)
    varied = [k for k in everything if any(arm.get(k) != first.get(k) for arm in model.arms)]
    left_out = [n for n in (*varied, *(t.name for t in layout.known)) if n not in named]
    return Factors(
        float(beta[0]), sd, df, tuple(found), tuple(dict.fromkeys(left_out)), tuple(_contrasts(layout.fitted, y)),
        0 if runs is None else runs - len(y),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _inverse(layout: Layout) -> Array:
    return np.asarray(np.linalg.inv(layout.design.T @ layout.design))


@lru_cache(maxsize=4)
def _shared(layout: Layout) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Fitted term -> (effects that the design cannot tell from it, effects that it partly shares)."""
    found = {}
    for term in layout.fitted:
        shared = {other.name: cosine(term, other) for other in layout.known if other is not term}
        aliases = tuple(n for n, c in shared.items() if c > 1 - EXACT)
        found[term.name] = aliases, tuple(n for n, c in shared.items() if EXACT <= c <= 1 - EXACT)
    return found


def _term(
    term: Columns, shared: tuple[tuple[str, ...], tuple[str, ...]], beta: Array, inverse: Array, sd: float, df: int
) -> Term:
    values = term.contrast @ beta
    reach, p = np.full(len(values), math.nan), math.nan
    if df:
        spread = np.einsum("li,ij,lj->l", term.contrast, inverse, term.contrast)
        reach = -special.stdtrit(df, 0.025) * sd * np.sqrt(spread)
        with np.errstate(divide="ignore"):
            f = beta @ np.linalg.solve(inverse, beta) / len(beta) / np.float64(sd) ** 2
        p = float(special.fdtrc(len(beta), df, f))
    found = tuple(
        Effect(level, float(v), float(v - r), float(v + r))
        for level, v, r in zip(term.levels, values, reach, strict=True)
    )
    return Term(term.factors, found, p, *shared)


def _contrasts(fitted: Sequence[Columns], y: Array) -> list[tuple[str, float]]:
    found = []
    for term in fitted:
        sizes = 2 * term.basis.T @ y / math.sqrt(len(y))
        if len(sizes) == 1:  # signed: second level minus first
            sizes = sizes * np.sign(term.basis[:, 0] @ -term.values[:, 0])
        names = [term.name] if len(sizes) == 1 else [f"{term.name} ({i + 1})" for i in range(len(sizes))]
        found += [(name, float(s)) for name, s in zip(names, sizes, strict=True)]
    return found
