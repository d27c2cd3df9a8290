"""Which score separates arms: signal, noise, monotonicity and rank stability of a score.

Signal and noise as in arXiv:2508.13144: the spread between models over the spread of one model's last checkpoints.
Monotonicity and stable order as in arXiv:2506.20920: rank correlation of a score with the steps, and of the order of
the arms during training with their order at its end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablatio.report.statistics.robustness import residuals

LAST = 5  # checkpoints whose spread is the noise of training
Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


@dataclass(frozen=True, slots=True)
class ScoreQuality:
    """How well a score separates the arms; what the runs do not determine is nan.

    signal            largest difference between the means of two arms
    seed_noise        sd of a run over seeds, pooled over arms; the seed's effect that arms share is taken out
    checkpoint_noise  sd over the last LAST checkpoints around their trend, mean over runs
    snr_seed          signal over seed_noise
    snr_checkpoint    signal over checkpoint_noise: the paper's ratio, in which both are divided by the mean
    monotonicity      Spearman's correlation of the score with the steps, mean over runs; 1: always improving
    rank_stability    Kendall's tau between the order of the arms at one checkpoint and at the last, mean over the
                      second half of training
    decisions         share of pairs of arms whose order at half of the training is that at its end
    """

    arms: int
    seeds: int
    checkpoints: int
    signal: float
    seed_noise: float
    checkpoint_noise: float
    snr_seed: float
    snr_checkpoint: float
    monotonicity: float
    rank_stability: float
    decisions: float


def score_quality(
    finals: Mapping[str, Mapping[int, float]], curves: Mapping[str, Sequence[Curve]], *, higher: bool = False
) -> ScoreQuality:
    """Measure a score.

    finals: arm -> seed -> final score; curves: arm -> curves of its runs; higher: larger scores are better
    """
    means = {arm: float(np.mean(list(by.values()))) for arm, by in finals.items() if by}
    signal = max(means.values()) - min(means.values()) if len(means) > 1 else math.nan
    seed = seed_noise(finals)
    runs = [c for of_arm in curves.values() for c in of_arm if len(c[0]) > 2]
    each = [v for c in runs if not math.isnan(v := checkpoint_noise(c[1]))]
    training = float(np.mean(each)) if each else math.nan
    sign = 1 if higher else -1
    rising = sign * _rank_correlations(runs)
    table = _arm_curves(curves)
    return ScoreQuality(
        len(means), max((len(by) for by in finals.values()), default=0), max((len(c[0]) for c in runs), default=0),
        signal, seed, training, _ratio(signal, seed), _ratio(signal, training),
        float(rising.mean()) if len(rising) else math.nan, rank_stability(table), _decisions(table),
    )  # fmt: skip


def seed_noise(finals: Mapping[str, Mapping[int, float]]) -> float:
    """Sd of a run, from a two-way table without interaction: arms and the seeds that all of them have.

    A shift that all arms share in a seed does not blur their comparison, so it is no noise here.  Arms without a common
    pair of seeds are pooled by themselves.
    """
    arms = [by for by in finals.values() if by]
    common = sorted(set.intersection(*(set(by) for by in arms))) if arms else []
    if len(arms) > 1 and len(common) > 1:
        table = np.array([[by[s] for s in common] for by in arms])
        return math.sqrt(float((residuals(table) ** 2).sum()) / ((len(arms) - 1) * (len(common) - 1)))
    several = [np.array(list(by.values())) for by in arms if len(by) > 1]
    df = sum(len(v) - 1 for v in several)
    return math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in several) / df) if df else math.nan


def checkpoint_noise(values: Sequence[float]) -> float:
    """Sd of the last LAST checkpoints around their straight line; nan for fewer than LAST.

    The paper takes the plain sd, at the end of long runs where the trend is small.  In short runs the trend is larger
    than the noise, and would count as noise.
    """
    last = np.asarray(values, dtype=np.float64)[-LAST:]
    if len(last) < LAST:
        return math.nan
    steps = np.arange(LAST)
    left = last - np.polyval(np.polyfit(steps, last, 1), steps)
    # The line takes two degrees of freedom.
    return math.sqrt(float((left**2).sum()) / (LAST - 2))


def _arm_curves(curves: Mapping[str, Sequence[Curve]]) -> np.ndarray:
    """Mean curve of each arm at the steps that all runs have: (arms, steps)."""
    every = [c for of_arm in curves.values() for c in of_arm if len(c[0])]
    steps = sorted(set.intersection(*(set(c[0]) for c in every))) if every else []
    rows = [
        np.mean([list(map(dict(zip(*c, strict=True)).__getitem__, steps)) for c in of_arm if len(c[0])], 0)
        for of_arm in curves.values()
        if any(len(c[0]) for c in of_arm)
    ]
    return np.array(rows) if rows and steps else np.zeros((0, 0))


def rank_stability(table: np.ndarray) -> float:
    """Mean Kendall's tau of the order of the arms at each checkpoint of the second half with the order at the last."""
    from scipy.stats import kendalltau

    if table.shape[0] < 3 or table.shape[1] < 4:
        return math.nan
    last = table[:, -1]
    if np.ptp(last) == 0:
        return math.nan
    taus = [kendalltau(column, last).statistic for column in table[:, table.shape[1] // 2 : -1].T if np.ptp(column) > 0]
    return float(np.mean(taus)) if taus else math.nan


def _decisions(table: np.ndarray) -> float:
    if table.shape[0] < 2 or table.shape[1] < 4:
        return math.nan
    a, b = np.triu_indices(len(table), 1)
    half, last = table[:, table.shape[1] // 2], table[:, -1]
    return float(((half[a] - half[b]) * (last[a] - last[b]) > 0).mean())


def _rank_correlations(curves: Sequence[Curve]) -> np.ndarray:
    """Spearman's correlation of the values with the steps, which ascend, for each curve that is not constant."""
    from scipy.stats import rankdata

    lengths: dict[int, list[Sequence[float]]] = {}
    for _, values in curves:
        if np.ptp(values) > 0:
            lengths.setdefault(len(values), []).append(values)
    found = [np.zeros(0)]
    for length, rows in lengths.items():
        # All curves of one length at once: scipy's `spearmanr` takes one pair at a time.
        ranks, steps = rankdata(rows, axis=1) - (length + 1) / 2, np.arange(length) - (length - 1) / 2
        found.append(ranks @ steps / np.sqrt((ranks**2).sum(1) * (steps**2).sum()))
    return np.concatenate(found)


def _ratio(signal: float, noise: float) -> float:
    return signal / noise if noise > 0 else math.nan
