"""The page of `ablatio scaling`: fit, residuals, budgets and gains over the sizes; it opens without a network."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import numpy as np

from ablatio.report.analysis.scaling import Prediction, ScalingResult
from ablatio.report.analysis.scaling_data import columns, flops, parameters
from ablatio.report.analysis.scaling_text import law_text, sentences
from ablatio.report.analysis.scaling_verdict import ArmTrend, trend_chart
from ablatio.report.analysis.scaling_verdict import sentences as trend_sentences
from ablatio.report.analysis.verdict_types import LANGUAGES
from ablatio.report.escape import script_json, visible
from ablatio.report.html.page_data import clean
from ablatio.report.html.render import PAGE, digest
from ablatio.report.statistics.scaling_law import different

LINES = 7  # curves of the law in the chart
GRID = 40  # points of each
SCRIPTS = ("frame.js", "draw.js", "scales.js", "scaling.js")


def scaling_page(
    result: ScalingResult, places: Sequence[Prediction], found: Sequence[ArmTrend], title: str = ""
) -> str:
    """The whole page."""
    assets = files("ablatio.report.html") / "assets"
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    words = {n: json.loads(assets.joinpath(f"scaling.{n}.json").read_text(encoding="utf-8")) for n in LANGUAGES}
    said = [*sentences(result, places), *trend_sentences(found, "nats")]
    return PAGE.format(
        title=html.escape(visible(title or law_text(result.fit))),
        plain="".join(f"<p>{html.escape(visible(s))}</p>" for s in said),
        connect="", style=style, style_hash=digest(style), script=script, script_hash=digest(script),
        data=script_json(scaling_data(result, places, found, title)), words=script_json(words),
    )  # fmt: skip


def scaling_data(
    result: ScalingResult, places: Sequence[Prediction], found: Sequence[ArmTrend], title: str = ""
) -> dict[str, Any]:
    """The one JSON block of the page."""
    fit = result.fit
    made: dict[str, Any] = clean({
        "title": title, "metric": result.metric, "law": law_text(result.fit), "formula": fit.form.formula,
        "paper": getattr(fit.form, "paper", ""), "written": time.strftime("%Y-%m-%d %H:%M"), "runs": len(result.runs),
        "coefficients": [
            [name, value, *fit.coefficient_interval(name)] for name, value in fit.coefficients.items()
        ],
        "points": _points(result), "x": _axis(result), "lines": _lines(result),
        "said": {n: sentences(result, places, n) for n in LANGUAGES},
        "budgets": [asdict(b) | {"points": _near(result, b.flops, b.sizes)} for b in result.budgets],
        "envelope": _envelope(result),
        "predicted": [[p.n, p.d, p.loss, p.low, p.high] for p in places],
        "trends": [trend_chart(t) for t in found],
        "trends_said": {n: trend_sentences(found, "nats", n) for n in LANGUAGES},
    })  # fmt: skip
    return made


def _points(result: ScalingResult) -> list[dict[str, Any]]:
    return [
        {"title": r.title, "seed": r.seed, "N": parameters(r, result.count), "D": r.size["tokens"],
         "C": flops(r, result.count), "loss": r.scores[result.metric], "residual": residual}
        for r, residual in zip(result.runs, result.fit.residuals, strict=True)
    ]  # fmt: skip


def _axis(result: ScalingResult) -> str:
    """The column along which the law is drawn."""
    return next(name for name in ("C", "N", "D") if name in result.fit.reach)


def _lines(result: ScalingResult) -> list[dict[str, Any]]:
    """The law along its axis, once for each value of its other columns; evenly chosen if there are many."""
    fit, axis = result.fit, _axis(result)
    table = columns(result.runs, result.law, result.count)
    others = [name for name in fit.reach if name != axis]
    # Two digits: sizes that differ by a few embeddings are one line.
    combinations = sorted({tuple(float(f"{table[name][i]:.2g}") for name in others) for i in range(len(result.runs))})
    chosen = {int(i) for i in np.linspace(0, len(combinations) - 1, min(LINES, len(combinations)))}
    low, high = fit.reach[axis]
    grid = np.geomspace(low, high, GRID)
    made = []
    for i in sorted(chosen):
        place = {axis: grid} | {name: np.full(GRID, v) for name, v in zip(others, combinations[i], strict=True)}
        losses = fit.form.score(fit.form.log_loss(fit.w, place))
        made.append({"of": dict(zip(others, combinations[i], strict=True)), "x": grid.tolist(), "y": losses.tolist()})
    return made


def _near(result: ScalingResult, budget: float, sizes: tuple[float, float]) -> list[list[float]]:
    """(N, loss) of the runs of a budget."""
    return [
        [parameters(r, result.count), r.scores[result.metric]]
        for r in result.runs
        # The runs of a budget lie within log SPAN = 0.14 of their mean.
        if abs(np.log(flops(r, result.count) / budget)) < 0.15 and sizes[0] <= parameters(r, result.count) <= sizes[1]
    ]


def _envelope(result: ScalingResult) -> dict[str, Any] | None:
    found = result.envelope
    if found is None or different(found.n) < 2:
        return None
    return {"flops": found.flops.tolist(), "n": found.n.tolist(), "losses": found.losses.tolist()}
