"""Data-constrained scaling: repeated tokens count less than new ones (arXiv:2305.16264).

L = E + A / N'^alpha + B / D'^beta
D' = U + U R_D* (1 - exp(-R_D / R_D*)),   R_D = D / U - 1 repetitions of U unique tokens
N' = V + V R_N* (1 - exp(-R_N / R_N*)),   R_N = N / V - 1,   V = min(N, compute-optimal parameters for U)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, LogForm
from ablatio.report.statistics.scaling_law.forms import Chinchilla, exponential

R_D = 15.387756  # the paper's fit: repeated data
R_N = 5.309743  # the paper's fit: parameters beyond those that are optimal for the unique data
NEGLIGIBLE = 4.0  # epochs up to which repeated tokens are worth nearly as much as new ones (section 6)
WORTHLESS = 40.0  # epochs beyond which repetition adds almost nothing (section 6)
BASE = Chinchilla()


def effective(unique: Any, used: Any, decay: Any = R_D) -> Any:
    """Number of new tokens that are worth as much as `used` tokens out of `unique` ones."""
    # A run that ends within its first epoch has repeated nothing.
    unique = np.minimum(unique, used)
    return unique * (1 + decay * -np.expm1(-(used / unique - 1) / decay))


def optimal_parameters(unique: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:  # noqa: N803
    """Parameters of the model for which `unique` tokens are the compute-optimal amount of data.

    N = G (C / 6)^(beta / (alpha + beta)) and D = (C / 6)^(alpha / (alpha + beta)) / G, with
    G = (alpha A / (beta B))^(1 / (alpha + beta)); so N = G^(1 + beta / alpha) D^(beta / alpha).
    """
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    return g ** (1 + beta / alpha) * unique ** (beta / alpha)


@dataclass(frozen=True, slots=True)
class Repeated(LogForm):
    """The law above.  excess: parameters beyond the optimum for the unique data count less, too.

    w = the coefficients of `Chinchilla`, log R_D*, and log R_N* with `excess`; columns N, D, U
    """

    excess: bool = False
    paper = "arXiv:2305.16264"

    @property
    def names(self) -> tuple[str, ...]:
        """Coefficients of `Chinchilla`, then R_D and R_N."""
        return (*BASE.names, "R_D", *(["R_N"] if self.excess else []))

    @property
    def formula(self) -> str:
        """The formula as text."""
        n = "N'" if self.excess else "N"
        return f"L = E + A / {n}^alpha + B / D'^beta, D' = U + U R_D (1 - exp(-(D / U - 1) / R_D))"

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Chinchilla's law of the effective parameters and tokens."""
        with np.errstate(over="ignore", invalid="ignore"):
            d = effective(x["U"], x["D"], np.exp(w[..., 5, None]))
            n = x["N"]
            if self.excess:
                a, alpha, b, beta = (w[..., i, None] for i in range(1, 5))
                best = optimal_parameters(np.minimum(x["U"], x["D"]), np.exp(a), alpha, np.exp(b), beta)
                n = effective(np.minimum(best, n), n, np.exp(w[..., 6, None]))
        return BASE.log_loss(w, {"N": n, "D": d})

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """Chinchilla's starts for several decays; R_N* starts from the paper's value."""
        found = []
        for decay in (2.0, 6.0, R_D, 40.0):
            base = BASE.starts({"N": x["N"], "D": effective(x["U"], x["D"], decay)}, z)[0]
            found.append(np.array([*base, math.log(decay), *([math.log(R_N)] if self.excess else [])]))
        return found

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients."""
        return BASE.natural(w[:5]) | dict(zip(self.names[5:], map(exponential, w[5:]), strict=True))
