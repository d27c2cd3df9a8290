"""Scaling law of routed models: parameters of the dense model and number of experts (arXiv:2202.01169).

    log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d                                  (equation 1)
    1 / E' = 1 / (E - 1 + (1 / E_start - 1 / E_max)^-1) + 1 / E_max

N: parameters that one token uses; E: experts (1: dense); E' saturates between E_start and E_max.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, LogForm


@dataclass(frozen=True, slots=True)
class Routed(LogForm):
    """The law above; without `saturates` E' = E.

    w = a, b, c, d, and with `saturates` log K and log E_max, where K = (1 / E_start - 1 / E_max)^-1; columns N, experts
    """

    saturates: bool = False
    paper = "arXiv:2202.01169"

    @property
    def names(self) -> tuple[str, ...]:
        """a, b, c, d, E_start, E_max."""
        return ("a", "b", "c", "d", *(["E_start", "E_max"] if self.saturates else []))

    @property
    def formula(self) -> str:
        """The formula as text."""
        return "log10 L = a log10 N + b log10 E + c log10 N log10 E + d" + (", E saturating" if self.saturates else "")

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Natural log of the loss."""
        logs = np.log10(x["N"])
        experts = np.log10(x["experts"])
        if self.saturates:
            inner, most = np.exp(w[..., 4, None]), np.exp(w[..., 5, None])
            experts = -np.log10(1 / (x["experts"] - 1 + inner) + 1 / most)
        a, b, c, d = (w[..., i, None] for i in range(4))
        return np.asarray(np.log(10) * (a * logs + b * experts + c * logs * experts + d))

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """Given the saturation the law is linear: the best of a grid."""
        logs, target = np.log10(x["N"]), np.log10(z)
        found = []
        for inner, most in product((1.0, 2.0, 5.0), (30.0, 300.0, 3e4)) if self.saturates else [(1.0, np.inf)]:
            experts = -np.log10(1 / (x["experts"] - 1 + inner) + 1 / most)
            columns = np.stack([logs, experts, logs * experts, np.ones_like(logs)], 1)
            w, *_ = np.linalg.lstsq(columns, target, rcond=None)
            cost = float(((columns @ w - target) ** 2).sum())
            found.append((cost, np.array([*w, *(np.log([inner, most]) if self.saturates else [])])))
        found.sort(key=lambda item: item[0])
        return [w for _, w in found[:3]]

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients."""
        ends = [1 / (np.exp(-w[4]) + np.exp(-w[5])), np.exp(w[5])] if self.saturates else []
        return {name: float(v) for name, v in zip(self.names, [*w[:4], *ends], strict=True)}


def dense_equivalent(coefficients: dict[str, float], n: float, experts: float) -> float:
    """Parameters of the dense model with the loss of a routed one (effective parameter count, equation 8 without E').

    a log N + b log E + c log N log E = a log N_dense, since log E = 0 for one expert.
    """
    a, b, c = (coefficients[k] for k in "abc")
    logs, more = np.log10(n), np.log10(experts)
    return float(10 ** ((a * logs + b * more + c * logs * more) / a))
