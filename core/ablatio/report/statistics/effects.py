"""Main effects and two-way interactions of settings: least squares with the seed as a block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablatio.report.statistics.contrasts import EXACT, Columns, block, cosine, independent, terms

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
    kept = [i for i, v in enumerate(values) if math.isfinite(v)]
    if len(kept) < 2:
        raise ValueError(f"effects need two runs or more that did not diverge; {len(kept)} came")
    rows, y = [arms[i] for i in kept], np.array([values[i] for i in kept], dtype=np.float64)
    nuisance = block([seeds[i] for i in kept])
    known = terms(rows, nuisance, 2)
    fitted = _told_apart(known if interactions else [t for t in known if len(t.factors) == 1], nuisance)
    design = np.hstack([nuisance, *(t.values for t in fitted)])
    inverse: Array = np.linalg.inv(design.T @ design)
    beta: Array = np.linalg.lstsq(design, y)[0]
    df = len(y) - design.shape[1]
    sd = math.sqrt(float(((y - design @ beta) ** 2).sum()) / df) if df else math.nan
    found, at = [], nuisance.shape[1]
    for term in fitted:
        here = slice(at, at := at + term.values.shape[1])
        found.append(_term(term, known, beta[here], inverse[here, here], sd, df))
    named = {n for t in found for n in (t.name, *t.aliases)}
    everything = dict.fromkeys(k for arm in rows for k in arm if len({a.get(k) for a in rows}) > 1)
    left_out = [n for n in (*everything, *(t.name for t in known)) if n not in named]
    return Factors(
        float(beta[0]), sd, df, tuple(found), tuple(dict.fromkeys(left_out)), tuple(_contrasts(fitted, y)),
        len(values) - len(kept),
    )  # fmt: skip


def _told_apart(known: Sequence[Columns], nuisance: Array) -> list[Columns]:
    """All terms if they can be estimated together; else main effects and the terms orthogonal to all others."""
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


def _term(term: Columns, known: Sequence[Columns], beta: Array, inverse: Array, sd: float, df: int) -> Term:
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
    shared = {other.name: cosine(term, other) for other in known if other is not term}
    aliases = tuple(n for n, c in shared.items() if c > 1 - EXACT)
    return Term(term.factors, found, p, aliases, tuple(n for n, c in shared.items() if EXACT <= c <= 1 - EXACT))


def _contrasts(fitted: Sequence[Columns], y: Array) -> list[tuple[str, float]]:
    found = []
    for term in fitted:
        sizes = 2 * term.basis.T @ y / math.sqrt(len(y))
        if len(sizes) == 1:  # signed: second level minus first
            sizes = sizes * np.sign(term.basis[:, 0] @ -term.values[:, 0])
        names = [term.name] if len(sizes) == 1 else [f"{term.name} ({i + 1})" for i in range(len(sizes))]
        found += [(name, float(s)) for name, s in zip(names, sizes, strict=True)]
    return found


@dataclass(frozen=True, slots=True)
class HalfNormal:
    """Points of a half-normal plot, smallest first, and Lenth's margin of error."""

    names: tuple[str, ...]
    sizes: tuple[float, ...]
    quantiles: tuple[float, ...]
    margin: float


def half_normal(factors: Factors) -> HalfNormal:
    """Half-normal quantiles and Lenth's margin, for designs without replicates to estimate the spread from.

    Lenth (1989, Technometrics 31): s0 = 1.5 median |c|; s = 1.5 median of those |c| < 2.5 s0; margin t(m / 3) s.
    """
    ordered: list[tuple[str, Any]] = sorted(factors.contrasts, key=lambda c: abs(c[1]))
    sizes = np.abs([c[1] for c in ordered])
    m = len(sizes)
    if not m:
        return HalfNormal((), (), (), math.nan)
    small = sizes[sizes <= 2.5 * 1.5 * np.median(sizes)]
    margin = -float(special.stdtrit(m / 3, 0.025)) * 1.5 * float(np.median(small))
    quantiles = special.ndtri(0.5 + 0.5 * (np.arange(m) + 0.5) / m)
    return HalfNormal(tuple(c[0] for c in ordered), tuple(sizes.tolist()), tuple(quantiles.tolist()), margin)
