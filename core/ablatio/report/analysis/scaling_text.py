"""Sentences on a fitted scaling law, in English or Chinese."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ablatio.report.analysis.scaling import Prediction, ScalingResult
from ablatio.report.analysis.scaling_data import SECTIONS
from ablatio.report.analysis.scaling_words import LAW_WORDS
from ablatio.report.numbers import short
from ablatio.report.statistics.scaling_law import NEGLIGIBLE, WORTHLESS, Chinchilla, Fit


def law_text(fit: Fit) -> str:
    """The fitted formula: `L = 1.5 + 300 / N^0.4 + 200 / D^0.3`; of other laws, the formula and its coefficients."""
    c = fit.coefficients
    if not isinstance(fit.form, Chinchilla):
        return f"{fit.form.formula}; {', '.join(f'{name} = {value:.4g}' for name, value in c.items())}"
    terms = [f"{c[size]:.4g} / {of}^{c[power]:.3g}" for size, of, power in TERMS if size in c]
    return " + ".join([f"L = {c['E']:.4g}", *terms])


TERMS = (("A", "N", "alpha"), ("B", "D", "beta"))


def sentences(result: ScalingResult, places: Sequence[Prediction] = (), language: str = "en") -> list[str]:
    """Fit, check on the most expensive runs, best use of budgets, predictions, and warnings."""
    return [*_fit(result, language), *_budgets(result, language), *_predictions(result, places, language)]


def _words(language: str) -> dict[str, str]:
    return dict(LAW_WORDS["zh" if language == "zh" else "en"])


def _fit(result: ScalingResult, language: str) -> Iterator[str]:
    words, fit = _words(language), result.fit
    residual, run = max(zip(fit.residuals, result.runs, strict=True), key=lambda pair: abs(pair[0]))
    for name, own in result.arms.items():
        yield f"{name}{words['colon']}{law_text(own)}"
    yield words["residual"].format(title=run.title, seed=run.seed, residual=f"{residual:+.2%}")
    if fit.noise > 0 and not math.isnan(fit.noise):
        shared = words["shared"].format(sd=f"{fit.seed_noise:.2%}") if fit.seed_noise else ""
        yield words["noise"].format(sd=f"{fit.noise:.2%}", shared=shared)
    if others := _other_settings(result):
        yield words["mixed"].format(keys=", ".join(others), first=others[0])
    if held := result.held_out:
        outside = not held.low <= held.measured <= held.high and not math.isnan(held.low)
        yield words["held out wrong" if outside else "held out"].format(
            title=held.title, predicted=f"{held.predicted:.4f}", interval=_interval(held.low, held.high),
            measured=f"{held.measured:.4f}", runs=held.runs,
        )  # fmt: skip
    if (most := result.most_epochs) and most > NEGLIGIBLE and result.law != "repeated":
        yield words["runs repeat"].format(epochs=f"{most:.3g}")


def _other_settings(result: ScalingResult) -> list[str]:
    """Settings beside size and length in which the runs differ."""
    values: dict[str, set[str | None]] = {key: set() for r in result.runs for key in r.arm}
    for key, seen in values.items():
        seen.update(r.arm.get(key) for r in result.runs)
    return sorted(key for key, seen in values.items() if len(seen) > 1 and key.split(".")[0] not in SECTIONS)


def _budgets(result: ScalingResult, language: str) -> Iterator[str]:
    words = _words(language)
    for budget in result.budgets:
        where = "" if budget.inside else words["outside"]
        yield words["budget"].format(
            runs=budget.runs, flops=f"{budget.flops:.3g}", best=short(budget.best, 3), where=where,
            span=f"{budget.span - 1:.0%}",
        )  # fmt: skip
    if result.power is not None:
        yield words["power"].format(a=f"{result.power:.2f}", b=f"{1 - result.power:.2f}")
    if env := result.envelope:
        yield words["envelope"].format(
            a=f"{env.exponent:.2f}", interval=_interval(env.low, env.high, 2), b=f"{1 - env.exponent:.2f}",
            sizes=env.sizes,
        )  # fmt: skip
    for name, fit in result.tasks.items():
        c = fit.coefficients
        worst = max(map(abs, fit.residuals))
        yield words["task"].format(
            name=name, metric=result.metric, ends=f"{c['b']:.3f}", floor=f"{c['a'] + c['b']:.3f}", k=f"{c['k']:.3g}",
            middle=f"{c['L0']:.3f}", worst=f"{worst:.3f}",
        )  # fmt: skip


def _predictions(result: ScalingResult, places: Sequence[Prediction], language: str) -> Iterator[str]:
    words = _words(language)
    for p in places:
        what = words["run"] if p.budget is None else words["best use"].format(flops=f"{p.budget:.3g}")
        yield words["prediction"].format(
            what=what, n=short(p.n, 3), d=short(p.d, 3), loss=f"{p.loss:.4f}",
            interval=_interval(p.low, p.high), run=_interval(p.run_low, p.run_high),
        )  # fmt: skip
        yield from _epochs(result, p, words)
        for name, fit in result.tasks.items():
            value = fit.loss({"L": p.loss})
            yield words["task at"].format(name=name, value=f"{value:.3f}", loss=f"{p.loss:.4f}")


def _epochs(result: ScalingResult, p: Prediction, words: dict[str, str]) -> Iterator[str]:
    """How often a plan reads its text, as a warning above NEGLIGIBLE epochs."""
    if p.epochs is None or result.unique is None or p.epochs <= 1:
        return
    key = "epochs" if p.epochs <= NEGLIGIBLE else "warning" if p.epochs <= WORTHLESS else "worthless"
    worth = short(p.effective, 3) if p.effective else ""
    yield words[key].format(epochs=f"{p.epochs:.3g}", unique=short(result.unique, 3), worth=worth)
    if key != "epochs" and result.law != "repeated":
        yield words["as new"]


def _interval(low: float, high: float, places: int = 4) -> str:
    return "" if math.isnan(low) else f"[{low:.{places}f}, {high:.{places}f}]"
