"""A fitted law with intervals from simulated studies.

Intervals come from a parametric bootstrap: each draw adds fresh noise to the fitted losses and fits again.  The noise
has the spread of the residuals, and that spread is itself drawn (sd * sqrt(df / chi2)), which widens the percentiles of
a small study as Student's t does.  A shift that the runs of one seed share is drawn per seed; predictions are widened
by Student's t with the degrees of freedom of both (Satterthwaite), since seeds are few.  Resampling runs or residuals
instead covers 88 of 100 predictions with 16 runs: the runs are few, and Huber's loss is nearly a median regression.
benchmarks/validity_scaling.py measures the coverage.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, Form, minimum, refit

APART = 1.1  # ratio below which two sizes count as one
DRAWS = 400
TAILS = (2.5, 97.5)
Place = Mapping[str, float]  # column -> value


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    w          coefficients as the form stores them; draws (b, p): those of simulated studies
    residuals  log of observed minus log of predicted loss per run (for a task: the difference itself)
    noise      sd of a run around the law within one seed; seed_noise: sd of the shift that the runs of a seed share
    scales     (b,): the noise in each draw
    freedom    degrees of freedom of both; the second is 0 for one seed
    reach      column -> (min, max) over the runs
    """

    form: Form
    w: Array
    residuals: Sequence[float]
    draws: Array
    noise: float
    seed_noise: float
    scales: Array
    freedom: tuple[int, int]
    reach: dict[str, tuple[float, float]]

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficients as the paper writes them."""
        return self.form.natural(self.w)

    def loss(self, place: Place) -> float:
        """Predicted loss at a place: `loss({"N": 1e8, "D": 2e9})`."""
        return float(self.form.score(self.form.log_loss(self.w, _column(place)))[0])

    def interval(self, of: Callable[[dict[str, float]], float]) -> tuple[float, float]:
        """95 % interval of a number computed from the coefficients; nan without draws."""
        return _percentiles([of(coefficients) for coefficients in self._drawn])

    def coefficient_interval(self, name: str) -> tuple[float, float]:
        """95 % interval of one coefficient; nan without draws."""
        return self.interval(lambda coefficients: coefficients[name])

    def loss_interval(self, place: Place) -> tuple[float, float]:
        """95 % interval of the mean loss at a place, over all runs that could be made there."""
        if not len(self.draws):
            return math.nan, math.nan
        return self._widened(self.form.log_loss(self.draws, _column(place))[:, 0], place, self._seeds)

    def run_interval(self, place: Place, runs: int = 1, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the mean of `runs` new runs at a place, each with a new seed: it contains their noise."""
        if not len(self.draws):
            return math.nan, math.nan
        middle = self.form.log_loss(self.draws, _column(place))[:, 0]
        spread = np.sqrt((self.scales**2 + self.seed_noise**2) / runs)
        noise = np.random.default_rng(seed).normal(0, spread)
        return self._widened(middle + noise, place, self._seeds + 1 / runs)

    @cached_property
    def _drawn(self) -> list[dict[str, float]]:
        """Coefficients of each draw as the paper writes them."""
        return [self.form.natural(w) for w in self.draws]

    @property
    def _seeds(self) -> float:
        """Share of the variance between seeds that a mean over the seeds has."""
        return 1 / (self.freedom[1] + 1)

    def _widened(self, draws: Array, place: Place, shared: float) -> tuple[float, float]:
        """Percentiles of the draws; their distances from the estimate grow by Student's t for the few seeds."""
        low, high = _percentiles(draws)
        between = shared * self.seed_noise**2
        if between and self.freedom[1]:
            from scipy.special import stdtrit

            whole = max(float(draws.var()), between)
            # The floor keeps the degrees of freedom finite where the seeds make up all of the variance.
            own = max((whole - between) ** 2 / self.freedom[0], 1e-6 * whole**2)  # which the draws contain
            df, drawn = whole**2 / (own + between**2 / self.freedom[1]), whole**2 / own
            factor = float(stdtrit(df, 0.975) / stdtrit(drawn, 0.975))
            middle = float(self.form.log_loss(self.w, _column(place))[0])
            low, high = middle - factor * (middle - low), middle + factor * (high - middle)
        found = self.form.score(np.array([low, high]))
        return float(found[0]), float(found[1])

    def beyond(self, place: Place) -> float:
        """Factor by which the place exceeds the largest run, in the column in which it exceeds it most."""
        return max(value / self.reach[name][1] for name, value in place.items() if name in self.reach)


def fit_form(
    form: Form, x: Columns, losses: Sequence[float], *, seeds: Sequence[int] = (), draws: int = DRAWS, seed: int = 0
) -> Fit:
    """Fit a form to runs.

    seeds: of the runs; with two or more of them, the shift that the runs of a seed share becomes part of the intervals

    Raises:
        ValueError: fewer runs than coefficients.
    """
    z = np.asarray(losses, dtype=np.float64)
    p, n = len(form.names), len(z)
    if n < max(p, 4):
        raise ValueError(f"a law with {p} coefficients takes {max(p, 4)} runs or more; there are {n} runs")
    w = minimum(form, x, z)
    fitted, target = form.log_loss(w, x), form.target(z)
    residuals = target - fitted
    noise, shared, blocks = _spread(_own(residuals, form.slopes(w[None], x)[0]), p, seeds)
    rng = np.random.default_rng(seed)
    scales = _drawn(*noise, draws, rng)
    made: Array = np.zeros((0, p))
    if draws and noise[1] > 0:
        errors = rng.normal(size=(draws, n)) * scales[:, None]
        errors += rng.normal(0, shared[0], (draws, blocks.max() + 1))[:, blocks]
        made = refit(form, x, fitted + errors, w)
    reach = {name: (float(v.min()), float(v.max())) for name, v in x.items()}
    return Fit(form, w, residuals.tolist(), made, noise[0], shared[0], scales, (noise[1], shared[1]), reach)


def _own(residuals: Array, slopes: Array) -> Array:
    """Residuals of a least-squares fit near by: what no change of the coefficients explains.

    The residuals of Huber's fit are larger, as it is nearly a median regression: by 10 % in variance with 16 runs and
    5 coefficients, and by 5 % with 27 runs.
    """
    slopes = np.nan_to_num(slopes)
    scale = np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)
    return np.asarray(residuals - slopes / scale @ np.linalg.lstsq(slopes / scale, residuals)[0])


def _spread(residuals: Array, p: int, seeds: Sequence[int]) -> tuple[tuple[float, int], tuple[float, int], Any]:
    """Return (sd, degrees of freedom) within seeds and between them, and the number of the seed of each run."""
    n = len(residuals)
    _, blocks, counts = np.unique(seeds if len(seeds) == n else np.zeros(n), return_inverse=True, return_counts=True)
    many, df = len(counts), n - p - (len(counts) - 1)
    if many < 2 or counts.min() < 2 or df < 2:
        df = n - p
        return (math.sqrt(float((residuals**2).sum()) / df) if df else math.nan, df), (0.0, 0), np.zeros(n, int)
    means = np.bincount(blocks, residuals) / counts
    within = float(((residuals - means[blocks]) ** 2).sum()) / df
    grand = float(np.average(means, weights=counts))
    between = float((counts * (means - grand) ** 2).sum()) / (many - 1)
    # Runs per seed that count, with unequal numbers of them: n0 of the one-way layout with random effects.
    each = (n - float((counts**2).sum()) / n) / (many - 1)
    return (math.sqrt(within), df), (math.sqrt(max(0.0, between - within) / each), many - 1), blocks


def _drawn(sd: float, df: int, draws: int, rng: np.random.Generator) -> Array:
    """Spreads that could have led to the estimate `sd` with df degrees of freedom."""
    return sd * np.sqrt(df / rng.chisquare(df, draws)) if df else np.zeros(draws)


def different(values: Array) -> int:
    """Number of distinct values, counting values closer than APART as one."""
    steps = np.diff(np.log(np.sort(values)))
    return 1 + int((steps > math.log(APART)).sum())


def _column(place: Place) -> dict[str, Array]:
    return {name: np.array([float(value)]) for name, value in place.items()}


def _percentiles(values: Any) -> tuple[float, float]:
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        return math.nan, math.nan
    low, high = np.percentile(found, TAILS, method="nearest")  # no interpolation: a coefficient may be infinite
    return float(low), float(high)
