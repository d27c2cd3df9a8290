"""Fit scaling laws to a table of runs, with all that is said about the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ablatio.report.analysis.arms import arms_of
from ablatio.report.analysis.scaling_data import (
    columns,
    epochs,
    experts,
    flops,
    flops_per_parameter_and_token,
    learning_curves,
    parameters,
    unique_tokens,
)
from ablatio.report.analysis.scaling_verdict import families
from ablatio.report.read.run import Run
from ablatio.report.read.table import Table
from ablatio.report.statistics.scaling_law import (
    AMOUNTS,
    DRAWS,
    NEGLIGIBLE,
    R_D,
    Budget,
    Envelope,
    Fit,
    best_use,
    budgets,
    different,
    effective,
    envelope,
    fit_law,
    fit_task,
    power_of_budget,
)

EXPLAINED = 0.5  # largest share of an accuracy's variance that its sigmoid may leave; otherwise it is not shown
ENOUGH = 12  # runs from which the law of repeated tokens is the default, if they repeat their text


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The most expensive size and length, predicted by a fit to the other runs.

    measured: mean over its runs; low, high: 95 % interval of such a mean, noise of the runs included
    """

    title: str
    runs: int
    predicted: float
    low: float
    high: float
    measured: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted loss of a plan.

    budget             FLOPs whose best use it is; None for a run that was asked for
    low, high          95 % interval of the law's loss; run_low, run_high: of a single run
    epochs, effective  passes over the training text and the new tokens that they are worth; None if not known
    """

    n: float
    d: float
    loss: float
    low: float
    high: float
    run_low: float
    run_high: float
    epochs: float | None = None
    effective: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class ScalingResult:
    """A fitted law, with the uses of a budget that follow from it.

    per      training FLOPs per parameter and token (median of the runs)
    unique   tokens of the training text; None if the runs differ in it or do not say
    tasks    score -> sigmoid from the loss
    arms     name -> law of its runs alone, if the table has several arms at several sizes
    """

    runs: Sequence[Run]
    metric: str
    law: str
    count: str
    fit: Fit
    per: float
    budgets: Sequence[Budget]
    power: float | None
    envelope: Envelope | None
    held_out: HeldOut | None
    unique: float | None
    tasks: dict[str, Fit] = field(default_factory=dict)
    arms: dict[str, Fit] = field(default_factory=dict)

    @property
    def most_epochs(self) -> float | None:
        """Epochs of the longest run."""
        return max((e for r in self.runs if (e := epochs(r)) is not None), default=None)


def choose_law(runs: Sequence[Run]) -> str:
    """The default: routed if the number of experts varies, repeated if epochs do, else Chinchilla's."""
    if len({experts(r) for r in runs}) > 1:
        return "routed"
    passes = [e for r in runs if (e := epochs(r)) is not None]
    if len(passes) == len(runs) >= ENOUGH and max(passes) > NEGLIGIBLE:
        sizes, lengths = (different(np.array([r.size[k] for r in runs])) for k in ("parameters", "tokens"))
        return "repeated" if sizes > 2 and lengths >= AMOUNTS else "chinchilla"
    return "chinchilla"


def fit_runs(
    runs: Sequence[Run],
    metric: str,
    law: str,
    count: str = "parameters",
    planned: Sequence[float] = (),
    draws: int = DRAWS,
) -> ScalingResult:
    """Fit a law to runs.

    planned: budgets in FLOPs around which runs are grouped; without them they are found

    Raises:
        ValueError: the runs cannot determine the law.
    """
    scores = [r.scores[metric] for r in runs]
    fit = fit_law(law, columns(runs, law, count), scores, seeds=[r.seed for r in runs], draws=draws)
    found = list(budgets([parameters(r, count) for r in runs], [flops(r, count) for r in runs], scores, planned))
    unique = {unique_tokens(r) for r in runs}
    return ScalingResult(
        runs, metric, law, count, fit, flops_per_parameter_and_token(runs, count), found, power_of_budget(found),
        envelope(learning_curves(runs, metric, count)), _held_out(runs, metric, law, count, draws),
        unique.pop() if len(unique) == 1 else None, _tasks(runs, metric, draws),
    )  # fmt: skip


def _held_out(runs: Sequence[Run], metric: str, law: str, count: str, draws: int) -> HeldOut | None:
    """None if the other runs are too few to fit."""
    costs = [flops(r, count) for r in runs]
    last = max(zip(costs, runs, strict=True), key=lambda pair: pair[0])[1]
    place = {name: v[0] for name, v in columns([last], law, count).items()}
    # All runs of that size and length, or the fit would know the place that it is to predict.
    left = [r for r in runs if {n: v[0] for n, v in columns([r], law, count).items()} == place]
    rest = [r for r in runs if r not in left]
    try:
        fit = fit_law(
            law, columns(rest, law, count), [r.scores[metric] for r in rest], seeds=[r.seed for r in rest], draws=draws
        )
    except ValueError:
        return None
    low, high = fit.run_interval(_known(fit, place), len(left))
    measured = sum(r.scores[metric] for r in left) / len(left)
    return HeldOut(last.title, len(left), fit.loss(_known(fit, place)), low, high, measured)


def _tasks(runs: Sequence[Run], metric: str, draws: int) -> dict[str, Fit]:
    """Sigmoids from the loss to each accuracy that all runs have."""
    names = set.intersection(*(set(r.scores) for r in runs)) if runs else set()
    made = {}
    for name in sorted(names):
        if name != metric and name.endswith("accuracy"):
            values = np.array([r.scores[name] for r in runs])
            try:
                fit = fit_task([r.scores[metric] for r in runs], values.tolist(), draws=draws)
            except ValueError:
                continue
            # An accuracy that rises with the loss, or hardly follows it, is no base for a prediction.
            if fit.coefficients["a"] < 0 and np.var(fit.residuals) < EXPLAINED * values.var():
                made[name] = fit
    return made


def _known(fit: Fit, place: dict[str, float]) -> dict[str, float]:
    """The columns of a place that the law has."""
    return {name: value for name, value in place.items() if name in fit.reach}


def arm_laws(table: Table, metric: str, law: str, count: str) -> dict[str, Fit]:
    """The law of each family of arms (norm=a at all sizes), if there are several and its runs determine it."""
    made = {}
    grouped = families(arms_of(table, metric))
    for name, members in grouped.items() if len(grouped) > 1 else ():
        runs = [r for a in members for r in a.runs if r.done and r.role == "run" and metric in r.scores]
        try:
            # Without draws: only the formulas of single arms are shown.
            made[name] = fit_law(law, columns(runs, law, count), [r.scores[metric] for r in runs], draws=0)
        except ValueError:
            continue
    return made


def predict(result: ScalingResult, n: float, d: float, budget: float | None = None) -> Prediction:
    """Predict a run of n parameters and d tokens of the same training text."""
    fit = result.fit
    place: dict[str, Any] = {"N": n, "D": d, "C": result.per * n * d, "experts": fit.reach.get("experts", (1, 1))[1]}
    # Without a known text all tokens count as new, which the sentences say.
    place["U"] = result.unique or d
    place = _known(fit, place)
    passes = d / result.unique if result.unique else None
    worth = None
    if result.unique and passes and passes > 1:
        worth = float(effective(result.unique, d, fit.coefficients.get("R_D", R_D)))
    return Prediction(n, d, fit.loss(place), *fit.loss_interval(place), *fit.run_interval(place), passes, worth, budget)


def predict_budget(result: ScalingResult, flops_: float) -> Prediction:
    """Predict parameters, tokens and loss of the best run with this many FLOPs.

    Raises ValueError for a law without an optimum.
    """
    n, d = best_use(result.fit.coefficients, flops_, result.per)
    return predict(result, n, d, flops_)
