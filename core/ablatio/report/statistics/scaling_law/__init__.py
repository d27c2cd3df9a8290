"""Scaling laws: loss as a function of parameters N, tokens D and FLOPs C, and the best use of a budget."""

from ablatio.report.statistics.scaling_law.fit import APART, DRAWS, Fit, different, fit_form
from ablatio.report.statistics.scaling_law.forms import Chinchilla
from ablatio.report.statistics.scaling_law.kaplan import Joint, Power
from ablatio.report.statistics.scaling_law.laws import AMOUNTS, LAWS, fit_law, fit_task
from ablatio.report.statistics.scaling_law.loss_to_task import LossToTask
from ablatio.report.statistics.scaling_law.optimal import (
    SPAN,
    Budget,
    Envelope,
    LearningCurve,
    best_use,
    budgets,
    envelope,
    groups,
    power_of_budget,
)
from ablatio.report.statistics.scaling_law.repeated import NEGLIGIBLE, R_D, WORTHLESS, Repeated, effective
from ablatio.report.statistics.scaling_law.routed import Routed, dense_equivalent

__all__ = [
    "AMOUNTS", "APART", "DRAWS", "LAWS", "NEGLIGIBLE", "R_D", "SPAN", "WORTHLESS",
    "Budget", "Chinchilla", "Envelope", "Fit", "Joint", "LearningCurve", "LossToTask", "Power", "Repeated", "Routed",
    "best_use", "budgets", "dense_equivalent", "different", "effective", "envelope", "fit_form", "fit_law", "fit_task",
    "groups", "power_of_budget",
]  # fmt: skip
