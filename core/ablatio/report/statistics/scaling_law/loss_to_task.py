"""From loss to a task's accuracy: a sigmoid (arXiv:2412.04403, step 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ablatio.report.statistics.scaling_law.fitting import Array, Columns, NumericForm


@dataclass(frozen=True, slots=True)
class LossToTask(NumericForm):
    """accuracy = b + a / (1 + exp(-k (L - L0))).

    a < 0 for k > 0: accuracy falls from b at small losses to b + a at large ones.  w = a, b, log k, L0; column L.
    """

    names = ("a", "b", "k", "L0")
    formula = "accuracy = b + a / (1 + exp(-k (L - L0)))"
    paper = "arXiv:2412.04403"

    def log_loss(self, w: Array, x: Columns) -> Array:
        """The accuracy itself: this form is fitted without logs."""
        from scipy.special import expit

        a, b, k, middle = (w[..., i, None] for i in range(4))
        with np.errstate(over="ignore"):
            return np.asarray(b + a * expit(np.exp(k) * (x["L"] - middle)))

    def target(self, z: Array) -> Array:
        """Accuracies as they are."""
        return z

    def score(self, y: Array) -> Array:
        """Accuracies as they are."""
        return y

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """Given k and L0 the law is linear in a and b: the best of a grid."""
        from scipy.special import expit

        losses = x["L"]
        span = np.ptp(losses)
        found = []
        for steep, middle in product((2.0, 5.0, 12.0, 30.0), np.linspace(losses.min(), losses.max(), 7)):
            columns = np.stack([expit(steep / span * (losses - middle)), np.ones_like(losses)], 1)
            (a, b), *_ = np.linalg.lstsq(columns, z, rcond=None)
            cost = float(((columns @ [a, b] - z) ** 2).sum())
            found.append((cost, np.array([a, b, np.log(steep / span), middle])))
        found.sort(key=lambda item: item[0])
        return [w for _, w in found[:4]]

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients."""
        return {"a": float(w[0]), "b": float(w[1]), "k": float(np.exp(w[2])), "L0": float(w[3])}
