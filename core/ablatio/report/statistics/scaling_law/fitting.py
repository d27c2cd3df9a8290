"""Fit a scaling law: minimize Huber's loss on log losses, for one data set or for many resampled ones at once."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Columns = Mapping[str, Array]  # N parameters, D tokens, C FLOPs, U unique tokens, experts: (runs,) each

DELTA = 1e-3  # threshold of Huber's loss in log nats: larger residuals count linearly (arXiv:2203.15556)
# Near the cube root of the rounding error, where truncation and rounding of central differences balance.
STEP = 1e-6  # of the central differences that give the slopes
ITERATIONS = 80
CLOSE = 1e-7  # relative gain of a step below which a refit ends: 1000 times less than the spread of the draws
FARTHEST = 1e3  # residuals beyond it, and those that are not finite, count as this
LEAST, MOST = 1e-12, 1e12  # damping


class Form(Protocol):
    """The formula of a law.

    names       coefficients, in the order of the vector w; `log_loss` may store their logs
    formula     as text; paper: its source
    log_loss    w (..., p) and columns of n runs -> predicted log loss (..., n)
    slopes      derivatives of log_loss by w: (b, p) -> (b, n, p)
    starts      vectors from which the fit begins
    natural     w (p,) -> coefficients as the paper writes them
    target      losses -> what `log_loss` predicts: their logs; score: back
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        ...

    @property
    def formula(self) -> str:
        """The formula as text."""
        ...

    @property
    def paper(self) -> str:
        """Source."""
        ...

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Predicted log losses."""
        ...

    def slopes(self, w: Array, x: Columns) -> Array:
        """Derivatives of the predicted log losses by w."""
        ...

    def starts(self, x: Columns, z: Array) -> Sequence[Array]:
        """Vectors from which the fit begins."""
        ...

    def natural(self, w: Array) -> dict[str, float]:
        """Coefficients as the paper writes them."""
        ...

    def target(self, z: Array) -> Array:
        """Transform losses to the quantity that `log_loss` predicts."""
        ...

    def score(self, y: Array) -> Array:
        """Losses, from what `log_loss` predicts."""
        ...


class NumericForm:
    """Base of all forms: slopes by central differences, for those without formulas of their own."""

    __slots__ = ()

    def log_loss(self, w: Array, x: Columns) -> Array:
        """Predicted log losses."""
        raise NotImplementedError

    def slopes(self, w: Array, x: Columns) -> Array:
        """Derivatives of the predicted log losses by w: (b, p) -> (b, n, p)."""
        steps = STEP * np.eye(w.shape[1])
        return np.stack([(self.log_loss(w + h, x) - self.log_loss(w - h, x)) / (2 * STEP) for h in steps], -1)


class LogForm(NumericForm):
    """Base of the forms that are fitted to log losses."""

    __slots__ = ()

    def target(self, z: Array) -> Array:
        """Log losses."""
        return np.asarray(np.log(z))

    def score(self, y: Array) -> Array:
        """Losses."""
        return np.asarray(np.exp(y))


def minimum(form: Form, x: Columns, z: Array, tolerance: float = 1e-14) -> Array:
    """Return the w of least Huber loss over the starts, with scipy.  z: losses (n,)."""
    from scipy.optimize import least_squares

    target = form.target(z)
    tight = {"xtol": tolerance, "ftol": tolerance, "gtol": tolerance}

    def residuals(w: Array) -> Array:
        error = np.nan_to_num(form.log_loss(w, x) - target, nan=FARTHEST)
        return np.asarray(np.clip(error, -FARTHEST, FARTHEST))

    def differences(w: Array) -> Array:
        return np.asarray(np.nan_to_num(form.slopes(w[None], x)[0]))

    with np.errstate(all="ignore"):  # a trial step may overflow; it is then not taken
        tried = [
            least_squares(residuals, w, differences, loss="huber", f_scale=DELTA, x_scale="jac", max_nfev=600, **tight)
            # Several starts: the loss has local minima, in which one term takes over the part of another.
            for w in form.starts(x, z)
        ]
    return np.asarray(min(tried, key=lambda result: float(result.cost)).x)


def refit(form: Form, x: Columns, targets: Array, start: Array) -> Array:
    """Fit to many sets of log losses at once: (b, n) -> w (b, p), from one start.

    Damped Gauss-Newton on Huber's weights min(1, DELTA / |residual|), each set with its own damping.
    """
    # Own code, because scipy fits one data set at a time: 400 draws would take 400 times as long as one fit.
    w = np.repeat(start[None], len(targets), 0)
    damping = np.full(len(w), 1e-3)
    error = form.log_loss(w, x) - targets
    cost = _huber(error)
    active = np.arange(len(w))
    for _ in range(ITERATIONS):
        with np.errstate(all="ignore"):  # a trial step may overflow; it is then not taken
            moved = _step(form, x, w[active], error[active], damping[active])
            tried = form.log_loss(moved, x) - targets[active]
        new = _huber(tried)
        better = np.isfinite(new) & (new < cost[active])
        done = better & (cost[active] - new <= CLOSE * cost[active])
        won = active[better]
        w[won], error[won] = moved[better], tried[better]
        cost[won] = new[better]
        damping[active] = np.clip(np.where(better, damping[active] / 4, damping[active] * 8), LEAST, MOST)
        active = active[~done & (damping[active] < MOST)]
        if not len(active):
            break
    return w


def _step(form: Form, x: Columns, w: Array, error: Array, damping: Array) -> Array:
    """One damped step of each set."""
    slope = form.slopes(w, x)
    weighted = slope * np.minimum(1, DELTA / np.maximum(np.abs(error), 1e-300))[..., None]
    normal = weighted.swapaxes(1, 2) @ slope
    gradient = (error[:, None] @ weighted)[:, 0]
    diagonal = np.einsum("bpp->bp", normal)
    # Levenberg's damping in units of each coefficient; the floors keep a coefficient without influence solvable.
    diagonal += damping[:, None] * np.maximum(diagonal, 1e-12 * diagonal.max(1, keepdims=True)) + 1e-300
    good = np.isfinite(normal).all((1, 2)) & np.isfinite(gradient).all(1)
    # A set whose step has overflowed stays in place, and does not make the whole batch fail.
    normal[~good], gradient[~good] = np.eye(w.shape[1]), 0.0
    try:
        move = np.linalg.solve(normal, gradient[..., None])[..., 0]
    # One singular set makes `solve` raise for all of them.
    except np.linalg.LinAlgError:
        move = np.einsum("bpq,bq->bp", np.linalg.pinv(normal), gradient)
    return w - move


def _huber(error: Array) -> Array:
    size = np.abs(error)
    return np.asarray(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(-1))
