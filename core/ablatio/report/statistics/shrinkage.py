"""Shrunk means of many arms, and the probability of each to be the best.

Normal-normal empirical Bayes: the arms' true means come from N(mu, tau^2), their observed means have the variance v_i.
tau^2 is estimated by DerSimonian and Laird (1986, Control. Clin. Trials 7) and the posterior of arm i is

    N(mu + b_i (mean_i - mu), b_i v_i),   b_i = tau^2 / (tau^2 + v_i)

This is the model of Efron and Morris (1975), not the more flexible mixture of Stephens (2017, "ash").  It describes the
study at hand: the uncertainty of tau and of the variances is not in it, and no claim of the report rests on it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

from ablatio.report.statistics.robustness import residuals

POINTS = 80  # Gauss-Hermite nodes


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Posterior of one arm: mean and sd of its true score, and the probability that it is the best arm."""

    mean: float
    sd: float
    best: float


def shrink(values: Mapping[str, Mapping[int, float]], *, better: str = "low") -> dict[str, Shrunk]:
    """Shrink the means of three arms or more towards each other.  values: arm -> seed -> score.

    Only seeds that all arms have count, as blocks: v is the residual variance of arm + seed, divided by the number of
    seeds.  Empty if there are fewer than three arms or two such seeds.
    """
    sound = {a: {s: v for s, v in of.items() if math.isfinite(v)} for a, of in values.items()}
    arms = [a for a, of in sound.items() if of]
    seeds = sorted(set.intersection(*(set(sound[a]) for a in arms))) if arms else []
    if len(arms) < 3 or len(seeds) < 2:
        return {}
    x = np.array([[sound[a][s] for s in seeds] for a in arms])  # (arms, seeds)
    k, n = x.shape
    means = x.mean(1)
    variance = float((residuals(x) ** 2).sum()) / ((k - 1) * (n - 1)) / n
    between = float(means.var(ddof=1))
    tau2 = max(0.0, between - variance)
    share = tau2 / (tau2 + variance) if tau2 + variance > 0 else 0.0
    posterior = means.mean() + share * (means - means.mean())
    sd = math.sqrt(share * variance)
    best = _best(posterior if better == "low" else -posterior, sd)
    return {a: Shrunk(float(m), sd, float(b)) for a, m, b in zip(arms, posterior, best, strict=True)}


def _best(means: np.ndarray, sd: float) -> np.ndarray:
    """P(arm i is the lowest) for independent normals of one sd: the integral of phi_i times the others' 1 - Phi_j."""
    k = len(means)
    if sd == 0:
        lowest = means == means.min()
        return np.asarray(lowest / lowest.sum())
    nodes, weights = _nodes()
    points = means[:, None] + sd * nodes  # (arms, nodes)
    # Logs: the product over hundreds of arms would underflow.
    above = special.log_ndtr((means[None, :, None] - points[:, None, :]) / sd)  # (arm, other, nodes)
    above[np.arange(k), np.arange(k)] = 0.0
    found = np.exp(above.sum(1)) @ weights
    # Also divides by the sum of the weights, sqrt(2 pi).
    return np.asarray(found / found.sum())


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.hermite_e.hermegauss(POINTS)
