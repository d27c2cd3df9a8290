"""A fitted scaling law in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ablatio.report.analysis.scaling import Prediction, ScalingResult
from ablatio.report.analysis.scaling_text import law_text, sentences
from ablatio.report.analysis.scaling_verdict import ArmTrend, extrapolated
from ablatio.report.analysis.scaling_verdict import sentences as trend_sentences
from ablatio.report.escape import terminal
from ablatio.report.numbers import short

COUNTED = {"parameters": "parameters", "non_embedding": "non-embedding parameters", "active": "active parameters"}


def show_scaling(result: ScalingResult, places: Sequence[Prediction], found: Sequence[ArmTrend]) -> None:
    """Print the law, its coefficients with intervals, what follows from it, and the verdict across scales."""
    console, fit = Console(), result.fit
    n, d = (
        [r.size.get(result.count, r.size["parameters"]) for r in result.runs],
        [r.size["tokens"] for r in result.runs],
    )
    console.print(
        f"{terminal(result.metric)} of {len(result.runs)} runs: {short(min(n))} to {short(max(n))} "
        f"{COUNTED[result.count]} (N), {short(min(d))} to {short(max(d))} tokens (D)",
        highlight=False,
    )
    console.print(terminal(law_text(result.fit)), highlight=False)
    grid = Table(box=None, pad_edge=False)
    for title in ("", "fitted", "95 % interval"):
        grid.add_column(title, justify="right" if title else "left")
    for name, value in fit.coefficients.items():
        low, high = fit.coefficient_interval(name)
        grid.add_row(name, f"{value:.4g}", terminal(f"[{low:.4g}, {high:.4g}]"))
    console.print(grid, highlight=False)
    gains = [said for place in places for said in extrapolated(found, place.n, place.d, "nats")]
    for sentence in [*sentences(result, places), *trend_sentences(found, "nats"), *gains]:
        console.print(terminal(sentence), highlight=False)
