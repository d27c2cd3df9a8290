"""Change of a difference between two arms with scale: does a gain shrink, hold or grow?

For each seed the differences (one per size) are fitted by a line in the logs of the scales:

    d = gain + sum over scales of slope * log10(scale / its middle)

Gain, slopes, ends and predictions are linear in the differences of a seed, so each is one number per seed, and a
one-sample t-test over seeds is exact for normal noise: whatever the spread at each size, and whatever the sizes of one
seed share.  With one seed the scatter of four or more sizes around the line has to serve, which assumes the same spread
at all sizes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Kind = Literal["grows", "shrinks", "reverses", "changes", "holds", "open", "not testable"]

HOLDS = 0.25  # a gain holds if its change over the sizes is shown to be less than this share of it
FAR = 10.0  # largest extrapolation, as a multiple of the largest run
SCATTER = 4  # sizes from which one seed can be tested


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean with its 95 % interval and two-sided p; nan where the seeds do not determine it."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def resolved(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class HoldOut:
    """The largest scale, predicted from the others.  error: predicted minus measured difference."""

    at: float
    predicted: float
    measured: float
    error: Estimate

    @property
    def passed(self) -> bool:
        """True if the interval of the error contains 0."""
        return not self.error.resolved


@dataclass(frozen=True, slots=True)
class Trend:
    """Change of a gain (positive: the arm is better) along one scale.

    over         N (parameters) or D (tokens); ends: its smallest and largest value
    gain         mean over all sizes; first, last: on the line at the ends; slope: per tenfold of the scale
    holds        p of a change by HOLDS of the gain or more: small if the gain holds
    seeds        that have all sizes; scales: different values of the scale
    """

    over: str
    ends: tuple[float, float]
    gain: Estimate
    first: Estimate
    last: Estimate
    slope: Estimate
    holds: float
    seeds: int
    scales: int
    hold_out: HoldOut | None

    @property
    def reach(self) -> float:
        """Largest factor beyond the largest size at which a prediction is made; 1: none.

        Half of the measured range on a log scale, at most FAR; none with two sizes, if the largest size was not
        predicted by the others, or if its prediction is too vague to be a check.
        """
        if self.scales < 3 or self.hold_out is None or not self.hold_out.passed or self.vague:
            return 1.0
        return min(FAR, math.sqrt(self.ends[1] / self.ends[0]))

    @property
    def vague(self) -> bool:
        """True if the interval of the hold-out's error is wider to each side than the gain: anything passes."""
        error = self.hold_out.error if self.hold_out else None
        return error is not None and not (error.high - error.low) / 2 <= max(abs(self.gain.mean), abs(self.last.mean))

    def verdict(self, p: float | None = None, alpha: float = 0.05) -> Kind:
        """Put the trend into one word.  p: of the slope after a correction for several comparisons."""
        p = self.slope.p if p is None else p
        if math.isnan(p):
            return "not testable"
        if p > alpha:
            return "holds" if self.holds <= alpha else "open"
        first, last = self.first, self.last
        # A line that crosses 0 says "reverses" only if both ends are shown to differ from 0.
        if first.mean * last.mean < 0:
            if first.resolved and last.resolved:
                return "reverses"
            if not (first.resolved or last.resolved):
                return "changes"
            return "shrinks" if first.resolved else "grows"
        return "grows" if abs(last.mean) > abs(first.mean) else "shrinks"


def trends(scales: Mapping[str, Sequence[float]], differences: Any) -> list[Trend]:
    """Return the trend along each scale.

    scales: name -> value at each size, (sizes,); differences: (seeds, sizes), gains of the arm at each size
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[np.isfinite(d).all(1)] if d.size else d.reshape(0, 0)
    logs = {name: np.log10(np.asarray(v, dtype=np.float64)) for name, v in scales.items()}
    return [_trend(name, logs, d) for name in scales]


def predict(scales: Mapping[str, Sequence[float]], differences: Any, place: Mapping[str, float]) -> Estimate:
    """Difference on the line at a place, with its interval over seeds."""
    d = np.asarray(differences, dtype=np.float64)
    d = d[np.isfinite(d).all(1)]
    logs = {name: np.log10(np.asarray(v, dtype=np.float64)) for name, v in scales.items()}
    design = _design(logs)
    row = np.array([1.0, *(math.log10(place[name]) - _middle(v) for name, v in logs.items())])
    return _estimate(row @ np.linalg.pinv(design), d, design)


def _middle(logs: Array) -> float:
    return float(logs.mean())


def _design(logs: dict[str, Array]) -> Array:
    """Columns: 1, then each scale's log minus its mean."""
    columns = [v - _middle(v) for v in logs.values()]
    return np.stack([np.ones(len(columns[0])), *columns], 1)


def _trend(name: str, logs: dict[str, Array], d: Array) -> Trend:
    design = _design(logs)
    solve = np.linalg.pinv(design)
    place, own = 1 + list(logs).index(name), logs[name]
    low, high = own.min() - _middle(own), own.max() - _middle(own)
    rows = {
        "gain": solve[0], "slope": solve[place],
        "first": solve[0] + low * solve[place], "last": solve[0] + high * solve[place],
    }  # fmt: skip
    found = {key: _estimate(row, d, design) for key, row in rows.items()}
    # Rounded: equal sizes may come from sums in another order.
    scales = len(np.unique(np.round(own, 6)))
    return Trend(
        over=name, ends=(float(10 ** own.min()), float(10 ** own.max())),
        holds=_p_of_holding(solve[0], (high - low) * solve[place], d, design),
        seeds=len(d), scales=scales, hold_out=_hold_out(name, logs, d) if scales > 2 else None, **found,
    )  # fmt: skip


def _p_of_holding(gain: Array, change: Array, d: Array, design: Array) -> float:
    """Larger p of two one-sided tests that the change is within HOLDS times the gain, in either direction."""
    # |change| < HOLDS |gain| is two statements, HOLDS |gain| + change > 0 and HOLDS |gain| - change > 0, each linear.
    sign = math.copysign(1.0, _estimate(gain, d, design).mean)
    sides = [_estimate(HOLDS * sign * gain + way * change, d, design) for way in (1, -1)]
    ps = [side.p / 2 if side.mean > 0 else 1 - side.p / 2 for side in sides]
    return math.nan if any(map(math.isnan, ps)) else max(ps)


def _hold_out(name: str, logs: dict[str, Array], d: Array) -> HoldOut | None:
    """Predict the differences at the largest scale from those at the smaller ones."""
    own = logs[name]
    largest = own > own.max() - 1e-6
    rest = {key: v[~largest] for key, v in logs.items()}
    design = _design(rest)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    targets = np.stack([np.ones(largest.sum()), *(v[largest] - _middle(rest[key]) for key, v in logs.items())], 1)
    row = np.zeros(len(own))
    row[~largest] = (targets @ np.linalg.pinv(design)).mean(0)
    predicted = float((d @ row).mean()) if len(d) else math.nan
    # Predicted minus measured is one row, so that its error per seed contains what both share.
    row[largest] = -1 / largest.sum()
    measured = float(d[:, largest].mean()) if len(d) else math.nan
    # One seed: the scatter of the other sizes alone, since the largest may not judge itself.
    without = np.concatenate([_design(logs), np.eye(len(own))[:, largest]], 1)
    return HoldOut(float(10 ** own.max()), predicted, measured, _estimate(row, d, without))


def _estimate(row: Array, d: Array, design: Array) -> Estimate:
    """Estimate of row @ (mean differences): t over seeds, or over the scatter around the line for one seed."""
    from scipy import special

    seeds, sizes = d.shape if d.ndim == 2 else (0, 0)
    if not seeds:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    each = d @ row
    mean = float(each.mean())
    if seeds > 1:
        df, error = seeds - 1, float(each.std(ddof=1)) / math.sqrt(seeds)
    else:
        df = sizes - design.shape[1]
        if sizes < SCATTER or df < 2:
            return Estimate(mean, math.nan, math.nan, math.nan)
        left = d[0] - design @ (np.linalg.pinv(design) @ d[0])
        error = math.sqrt(float((left**2).sum()) / df * float((row**2).sum()))
    if error <= 1e-12 * max(1e-300, float(np.abs(d).max())):  # equal in every seed: nothing to test against
        return Estimate(mean, math.nan, math.nan, math.nan)
    reach = -float(special.stdtrit(df, 0.025)) * error
    return Estimate(mean, mean - reach, mean + reach, float(2 * special.stdtr(df, -abs(mean) / error)))
