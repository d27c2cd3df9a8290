"""Simultaneous tests of named contrasts of settings, with replicates or, by Lenth's method, without."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablatio.report.statistics.contrasts import EXACT, Columns, Layout, Model, orthonormal
from ablatio.report.statistics.effects import Factors

Array = NDArray[np.floating[Any]]
Kind = Literal["pair", "crossing", "cell"]
DRAWS = 20_000  # of the null distribution; the 95 % quantile has a standard error of about 0.02
FEWEST, WORK = 4_000, 4e9  # draws, and multiplications, up to which large studies have all draws
SEED = 20_240_501  # of those draws: the same study always gives the same p
REPLICATED = 3  # degrees of freedom between equal arms from which on their spread is the scale
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Contrast:
    """A named difference with its simultaneous 95 % interval and corrected p.

    kind      pair: second minus first level of one factor.  crossing: how much the difference between the two levels
              of the first factor changes from the first to the second level of the other factor.  cell: what a
              combination of levels adds to the sum of their main effects
    levels    of each factor: two for a pair or a crossing, one for a cell
    p         chance of a larger |t| among all contrasts of the study if none has an effect; nan without a scale
    separate  False for an interaction that is only estimated on the assumption that no other one exists
    """

    factors: tuple[str, ...]
    kind: Kind
    levels: tuple[tuple[str, ...], ...]
    value: float
    low: float
    high: float
    p: float
    separate: bool = True

    @property
    def name(self) -> str:
        """Factors joined by ` x `."""
        return " x ".join(self.factors)


@dataclass(frozen=True, slots=True)
class Screen:
    """All contrasts of a study, tested together.

    scale     residual: standard deviation between runs of equal arms, seeds taken out; lenth: pseudo standard error
    sd, df    that standard deviation in score units; df is nan for Lenth's
    critical  |t| that a study without any effect exceeds in 5 of 100 cases; nan if there is no scale
    margin    simultaneous margin of error of a difference between two levels with half of the runs each
    """

    contrasts: tuple[Contrast, ...]
    scale: Literal["residual", "lenth", "none"]
    sd: float
    df: float
    critical: float
    margin: float

    def of(self, name: str) -> list[Contrast]:
        """Contrasts of a term, the most certain first."""
        found = [c for c in self.contrasts if c.name == name]
        return sorted(found, key=lambda c: (math.inf if math.isnan(c.p) else c.p, -abs(c.value)))


def screen(model: Model) -> Screen:
    """Test all differences between levels, and all interactions that can be estimated, as one family.

    With replicates t = estimate / (s sqrt(w'w)), s from the spread between runs of equal arms; without them s is
    Lenth's pseudo standard error of all n - 1 orthonormal contrasts.  The corrected p and the interval come from the
    distribution of the largest |t| of the family under the null hypothesis, simulated with a fixed seed: single-step
    max-t, which controls the chance of any false claim also when other effects are real.

    Sources: Hothorn, Bretz and Westfall 2008, doi:10.1002/bimj.200810425; Lenth 1989, doi:10.2307/1269997; critical
    values of Lenth's method by simulation: Ye and Hamada 2000, doi:10.1080/00224065.2000.11979971.
    """
    named = _contrasts(model.layout)
    scale: Literal["residual", "lenth", "none"] = "residual"
    sd, df = spread_between_equal_arms(model)
    if df < REPLICATED:
        space = _orthonormal_contrasts(model.layout)
        scale, df, sd = "lenth", math.nan, float(pseudo_standard_error((model.y @ space)[None])[0])
    rounding = EXACT * max(1.0, float(np.abs(model.y).max()))
    if not named or not sd > rounding:
        blank = tuple(
            Contrast(*name, float(w @ model.y), math.nan, math.nan, math.nan, separate) for name, w, separate in named
        )
        return Screen(blank, "none", math.nan, math.nan, math.nan, math.nan)
    lengths, rows = _unit_rows(model.layout, scale == "lenth")
    largest = null_maxima(rows, df)
    critical = float(np.quantile(largest, LEVEL))
    found = []
    for (name, w, separate), length in zip(named, lengths, strict=True):
        value, error = float(w @ model.y), float(length) * sd
        beyond = len(largest) - int(np.searchsorted(largest, abs(value) / error))
        reach = critical * error
        found.append(Contrast(*name, value, value - reach, value + reach, (1 + beyond) / (1 + len(largest)), separate))
    return Screen(tuple(found), scale, sd, df, critical, critical * sd * 2 / math.sqrt(len(model.y)))


def pseudo_standard_error(contrasts: Array) -> Array:
    """Lenth's pseudo standard error of each row of orthonormal contrasts: (studies, m) -> (studies,).

    s0 = 1.5 median |c|; s = 1.5 median of those |c| < 2.5 s0.
    """
    sizes = np.abs(contrasts)
    first = 1.5 * np.median(sizes, axis=1, keepdims=True)
    kept = np.where(sizes <= 2.5 * first, sizes, np.nan)
    return np.asarray(1.5 * np.nanmedian(kept, axis=1))


def spread_between_equal_arms(model: Model) -> tuple[float, float]:
    """(standard deviation between runs of equal arms, its degrees of freedom), differences between seeds taken out."""
    numbers: dict[tuple[tuple[str, str], ...], int] = {}
    arm = np.array([numbers.setdefault(tuple(sorted(a.items())), len(numbers)) for a in model.arms])
    columns = np.column_stack([model.y, model.layout.nuisance[:, 1:]])
    means = np.zeros((len(numbers), columns.shape[1]))
    np.add.at(means, arm, columns)
    left = columns - (means / np.bincount(arm)[:, None])[arm]  # what differs within an arm
    y, seeds = left[:, 0], left[:, 1:]
    if seeds.shape[1]:
        y = y - seeds @ np.linalg.lstsq(seeds, y)[0]
    df = len(y) - len(numbers) - (int(np.linalg.matrix_rank(seeds)) if seeds.shape[1] else 0)
    return (math.sqrt(float(y @ y) / df) if df > 0 else math.nan), float(max(df, 0))


def null_maxima(weights: Array, df: float) -> Array:
    """Sorted largest |t| of contrasts (K, m) with unit rows, in DRAWS studies without any effect.

    df  of the standard deviation; nan: Lenth's pseudo standard error of the m orthonormal contrasts
    """
    # As bytes, because a cache needs arguments that can be hashed.
    return _null_maxima(np.ascontiguousarray(weights).tobytes(), weights.shape, df)


@functools.lru_cache(maxsize=8)
def _null_maxima(weights: bytes, shape: tuple[int, int], df: float) -> Array:
    # float32: its rounding is far below the 0.02 that the draws leave open, and it halves time and memory.
    rows = np.frombuffer(weights, dtype=np.float64).reshape(shape).astype(np.float32)
    generator = np.random.default_rng(SEED)
    draws = int(min(DRAWS, max(FEWEST, WORK / (shape[0] * shape[1]))))
    found = []
    # In ten parts, so that the draws of a large study need not fit into memory at once.
    for _ in range(10):
        z = generator.standard_normal((draws // 10, shape[1]), dtype=np.float32)
        scale = pseudo_standard_error(z) if math.isnan(df) else np.sqrt(generator.chisquare(df, len(z)) / df)
        found.append(np.abs(z @ rows.T).max(1) / scale)
    return np.sort(np.concatenate(found))


Name = tuple[tuple[str, ...], Kind, tuple[tuple[str, ...], ...]]


@functools.lru_cache(maxsize=4)
def _contrasts(layout: Layout) -> list[tuple[Name, Array, bool]]:
    """(name, weights of the runs, can be told from all other effects) of each tested contrast."""
    found = []
    solve = np.linalg.pinv(layout.design)
    for term, here in zip(layout.fitted, layout.slices, strict=True):
        for name, combination in _named(term):
            found.append((name, combination @ term.contrast @ solve[here], True))
    fitted = {term.name for term in layout.fitted}
    for term in layout.known:  # interactions that cannot be told from one another: each as if it were the only one
        if term.name in fitted or term.values.shape[1] > 1:
            continue
        left = orthonormal(term.values, layout.design)
        # Less than a tenth of the column is its own: the estimate would be ten times as noisy as the others.
        if left.shape[1] and float(np.linalg.norm(left.T @ term.values)) > 0.1 * math.sqrt(len(layout.design)):
            solved = np.linalg.pinv(np.hstack([layout.design, term.values]))[-1:]
            for name, combination in _named(term):
                found.append((name, combination @ term.contrast @ solved, False))
    return found


@functools.lru_cache(maxsize=4)
def _unit_rows(layout: Layout, lenth: bool) -> tuple[Array, Array]:
    """Lengths of the contrasts' weights, and the weights with length 1 in the columns that `null_maxima` draws."""
    weights = np.array([w for _, w, _ in _contrasts(layout)])
    lengths = np.linalg.norm(weights, axis=1)
    unit = weights / lengths[:, None]
    # With replicates only the inner products of the contrasts matter: fewer columns, fewer draws.
    return lengths, unit @ _orthonormal_contrasts(layout) if lenth else _compressed(unit)


def _named(term: Columns) -> Iterator[tuple[Name, Array]]:
    """Yield (name, combination of the effects of the levels) of each contrast of a term."""
    count = len(term.levels)
    unit = np.eye(count)
    if len(term.factors) == 1:
        for i, j in combinations(range(count), 2):
            yield (term.factors, "pair", ((term.levels[i][0], term.levels[j][0]),)), unit[j] - unit[i]
    elif count == 4:
        (a, x), (_, y), (b, _), _ = term.levels
        yield (term.factors, "crossing", ((a, b), (x, y))), unit[3] - unit[1] - unit[2] + unit[0]
    else:
        for i, levels in enumerate(term.levels):
            yield (term.factors, "cell", tuple((level,) for level in levels)), unit[i]


@functools.lru_cache(maxsize=4)
def _orthonormal_contrasts(layout: Layout) -> Array:
    """(n, n - seeds) orthonormal contrasts: those of each fitted term in turn, then those of the residual."""
    left, found = layout.nuisance, []
    for term in layout.fitted:
        found.append(orthonormal(term.values, left))
        left = np.hstack([left, term.values])
    return np.hstack([*found, orthonormal(np.eye(len(left)), left)])


def _compressed(rows: Array) -> Array:
    """Rows with the same inner products in as few columns as they span."""
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    kept = s > EXACT * s[0]
    return np.asarray(u[:, kept] * s[kept])


@dataclass(frozen=True, slots=True)
class HalfNormal:
    """Points of a half-normal plot, smallest first, and Lenth's margins.

    margin        of one effect chosen beforehand
    simultaneous  that none of the effects exceeds in 95 of 100 studies without any effect
    error         pseudo standard error of an effect
    """

    names: tuple[str, ...]
    sizes: tuple[float, ...]
    quantiles: tuple[float, ...]
    margin: float
    simultaneous: float
    error: float


def half_normal(factors: Factors) -> HalfNormal:
    """Half-normal quantiles and Lenth's margins, for designs without replicates to estimate the spread from.

    Lenth (1989, Technometrics 31): s0 = 1.5 median |c|; s = 1.5 median of those |c| < 2.5 s0; margin t(m / 3) s.  The
    simultaneous margin uses the simulated quantile of the largest |c| / s (Ye and Hamada 2000).
    """
    ordered = sorted(factors.contrasts, key=lambda c: abs(c[1]))
    sizes = np.abs([c[1] for c in ordered])
    m = len(sizes)
    if not m:
        return HalfNormal((), (), (), math.nan, math.nan, math.nan)
    error = float(pseudo_standard_error(sizes[None])[0])
    margin = -float(special.stdtrit(m / 3, 0.025)) * error
    simultaneous = float(np.quantile(null_maxima(np.eye(m), math.nan), LEVEL)) * error
    quantiles = special.ndtri(0.5 + 0.5 * (np.arange(m) + 0.5) / m)
    names = tuple(c[0] for c in ordered)
    return HalfNormal(names, tuple(sizes.tolist()), tuple(quantiles.tolist()), margin, simultaneous, error)
