"""The laws by name, each with what it needs, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablatio.report.statistics.scaling_law.fit import APART, DRAWS, Fit, different, fit_form
from ablatio.report.statistics.scaling_law.fitting import Array, Form
from ablatio.report.statistics.scaling_law.forms import Chinchilla
from ablatio.report.statistics.scaling_law.kaplan import Joint, Power
from ablatio.report.statistics.scaling_law.loss_to_task import LossToTask
from ablatio.report.statistics.scaling_law.repeated import Repeated, optimal_parameters
from ablatio.report.statistics.scaling_law.routed import Routed

LAWS = {
    "chinchilla": "L = E + A / N^alpha + B / D^beta, or the term that varies (arXiv:2203.15556)",
    "kaplan": "L(N), L(D), or both in one: no irreducible loss (arXiv:2001.08361)",
    "compute": "L(C) of the FLOPs (arXiv:2001.08361); the runs should be compute-optimal",
    "repeated": "Chinchilla's law with effective tokens for repeated epochs (arXiv:2305.16264)",
    "routed": "L(N, E) of a mixture of E experts (arXiv:2202.01169)",
}
AMOUNTS = 5  # of data, from which E, B, beta and the decay of repeated tokens can be separated
SATURATION = 5  # different numbers of experts from which the saturation can be fitted


def fit_law(
    law: str, columns: Mapping[str, Sequence[float]], losses: Sequence[float], *,
    seeds: Sequence[int] = (), draws: int = DRAWS, seed: int = 0,
) -> Fit:  # fmt: skip
    """Fit the law of this name to runs.

    columns: N and D always; C for `compute`, U for `repeated`, experts for `routed`; (runs,) each

    Raises:
        ValueError: the runs cannot determine the law.
    """
    x = {name: np.asarray(v, dtype=np.float64) for name, v in columns.items()}
    z = np.asarray(losses, dtype=np.float64)
    if not all(np.isfinite(v).all() and len(v) and v.min() > 0 for v in (*x.values(), z)):
        raise ValueError("parameters, tokens and losses must be numbers above 0")
    form = _FORMS[law](x, z)
    return fit_form(form, {name: x[name] for name in _columns(form)}, losses, seeds=seeds, draws=draws, seed=seed)


def fit_task(losses: Sequence[float], accuracies: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit a sigmoid from loss to accuracy.  Raises ValueError if the runs cannot determine it."""
    x = np.asarray(losses, dtype=np.float64)
    if len(np.unique(np.round(x, 3))) < 5:
        raise ValueError(f"a sigmoid takes five different losses or more; there are {len(np.unique(np.round(x, 3)))}")
    return fit_form(LossToTask(), {"L": x}, accuracies, draws=draws, seed=seed)


def _columns(form: Form) -> tuple[str, ...]:
    match form:
        case Chinchilla(terms):
            return tuple({"A": "N", "B": "D"}[t] for t in terms)
        case Power(of):
            return (of,)
        case Repeated():
            return ("N", "D", "U")
        case Routed():
            return ("N", "experts")
        case _:
            return ("N", "D")


def _chinchilla(x: Mapping[str, Array], z: Array) -> Form:
    return Chinchilla(tuple({"N": "A", "D": "B"}[name] for name in _varying(x, z, 3)))


def _kaplan(x: Mapping[str, Array], z: Array) -> Form:
    names = _varying(x, z, 2)
    return Joint() if len(names) == 2 else Power(names[0])


def _compute(x: Mapping[str, Array], z: Array) -> Form:
    if different(x["C"]) < 3:
        raise ValueError(f"L(C) takes three budgets that are {APART - 1:.0%} apart; there are {different(x['C'])}")
    return Power("C")


def _repeated(x: Mapping[str, Array], z: Array) -> Form:
    _need_both(x, z)
    epochs = x["D"] / x["U"]
    if different(np.maximum(1, epochs)) < 3 or epochs.max() < 2:
        raise ValueError(
            "the law of repeated tokens takes three different numbers of epochs, the largest above 2; there are "
            f"{epochs.min():.2g} to {epochs.max():.2g} epochs"
        )
    amounts = {(round(math.log(d), 2), round(math.log(u), 2)) for d, u in zip(x["D"], x["U"], strict=True)}
    if len(amounts) < AMOUNTS:
        raise ValueError(
            f"the law of repeated tokens takes {AMOUNTS} different numbers of tokens or of unique tokens; there are "
            f"{len(amounts)}"
        )
    if len(z) < 8:
        raise ValueError(f"the law of repeated tokens takes 8 runs or more; there are {len(z)}")
    plain = fit_form(Repeated(), {name: x[name] for name in "NDU"}, z.tolist(), draws=0).coefficients
    best = optimal_parameters(x["U"], *(plain[k] for k in ("A", "alpha", "B", "beta")))
    # R_N* shows only in models that are larger than the unique data warrant.
    return Repeated(excess=bool(len(z) >= 12 and different(x["N"][x["N"] > best]) >= 3))


def _routed(x: Mapping[str, Array], z: Array) -> Form:
    sizes, counts = different(x["N"]), len(np.unique(x["experts"]))
    if sizes < 2 or counts < 2 or len(z) < 6:
        raise ValueError(
            "the law of routed models takes six runs or more, of two sizes and two numbers of experts; there are "
            f"{len(z)} runs, {sizes} sizes, {counts} numbers of experts"
        )
    return Routed(saturates=counts >= SATURATION and len(z) >= 10)


_FORMS: Mapping[str, Any] = {
    "chinchilla": _chinchilla, "kaplan": _kaplan, "compute": _compute, "repeated": _repeated, "routed": _routed,
}  # fmt: skip


def _varying(x: Mapping[str, Array], z: Array, each: int) -> list[str]:
    """Which of N and D vary enough for a term of the law.  each: coefficients of one term, with what it shares."""
    names = [name for name in ("N", "D") if different(x[name]) > 2]
    needed = max(4, 2 * len(names) + (each == 3))
    if not names or len(z) < needed:
        raise ValueError(
            f"a law takes {needed} runs or more, of three sizes or three numbers of tokens that are "
            f"{APART - 1:.0%} apart; there are {len(z)} runs, {different(x['N'])} sizes, "
            f"{different(x['D'])} numbers of tokens"
        )
    # With D = c N^k the two terms are one curve: any split between them fits equally well.
    if len(names) == 2 and abs(np.corrcoef(np.log(x["N"]), np.log(x["D"]))[0, 1]) > 0.999:
        raise ValueError(
            "parameters and tokens grow together in these runs, so their effects on the loss cannot be separated"
        )
    return names


def _need_both(x: Mapping[str, Array], z: Array) -> None:
    if len(_varying(x, z, 3)) < 2:
        raise ValueError(
            "the law of repeated tokens takes three sizes and three numbers of tokens; there are "
            f"{different(x['N'])} sizes and {different(x['D'])} numbers of tokens"
        )
