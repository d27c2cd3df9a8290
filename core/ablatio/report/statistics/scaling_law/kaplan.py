"""Kaplan's power laws of one quantity, and of parameters and tokens together (arXiv:2001.08361)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, LogForm
from ablatio.report.statistics.scaling_law.forms import exponential, log_sum, relative_nnls

GRID = np.geomspace(0.01, 1.5, 24)  # grid of exponents
STARTS = 4


@dataclass(frozen=True, slots=True)
class Power(LogForm):
    """L = (Xc / X)^alpha_X without an irreducible loss: equations 1.1 (N), 1.2 (D) and 1.3 (C) of the paper.

    of: N (parameters), D (tokens) or C (FLOPs); w = log Xc, alpha
    """

    of: str
    paper = "arXiv:2001.08361"

    @property
    def names(self) -> tuple[str, ...]:
        """Nc, alpha_N for `of` = N."""
        return (f"{self.of}c", f"alpha_{self.of}")

    @property
    def formula(self) -> str:
        """The formula as text."""
        return f"L = ({self.of}c / {self.of})^alpha_{self.of}"

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Log L = alpha (log Xc - log X)."""
        return np.asarray(w[..., 1:] * (w[..., :1] - np.log(x[self.of])))

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """The least-squares line through the logs."""
        slope, level = np.polyfit(np.log(x[self.of]), np.log(z), 1)
        return [np.array([-level / slope, -slope])]

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients; Xc is infinite where its exponential overflows."""
        return {self.names[0]: exponential(w[0]), self.names[1]: float(w[1])}


@dataclass(frozen=True, slots=True)
class Joint(LogForm):
    """L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D: equation 1.5.

    w = log Nc, log Dc, log alpha_N, log alpha_D
    """

    names = ("Nc", "Dc", "alpha_N", "alpha_D")
    formula = "L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D"
    paper = "arXiv:2001.08361"

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Log L = alpha_D log(sum of the two terms)."""
        nc, dc, alpha_n, alpha_d = (w[..., i, None] for i in range(4))
        ratio = np.exp(alpha_n - alpha_d)
        return np.asarray(np.exp(alpha_d) * log_sum([ratio * (nc - np.log(x["N"])), dc - np.log(x["D"])]))

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """The best exponents of a grid: given both, L^(1/alpha_D) is linear in powers of Nc and Dc."""
        found = []
        for alpha_n, alpha_d in product(GRID, repeat=2):
            ratio = alpha_n / alpha_d
            with np.errstate(over="ignore", under="ignore"):
                columns, target = [x["N"] ** -ratio, 1 / x["D"]], z ** (1 / alpha_d)
            if not (np.isfinite(target).all() and min(c.min() for c in columns) > 0):
                continue
            cost, (a, b) = relative_nnls(columns, target)
            # Relative errors of L^(1/alpha_D) are those of L over alpha_D: the factor makes grid points comparable.
            found.append((cost * alpha_d, np.array([math.log(a) / ratio, math.log(b), *np.log([alpha_n, alpha_d])])))
        found.sort(key=lambda item: item[0])
        return [w for _, w in found[:STARTS]]

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients; Nc and Dc are infinite where their exponential overflows."""
        values = [exponential(v) for v in w]
        return dict(zip(self.names, values, strict=True))
