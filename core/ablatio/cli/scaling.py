"""`ablatio scaling FOLDER...`: the law of runs of several sizes and lengths, and what a budget is best spent on."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ablatio.cli.commands import parser
from ablatio.errors import UserError

if TYPE_CHECKING:
    from ablatio.report.read.run import Run
    from ablatio.report.statistics.scaling_law import Budget, Fit, Law

FAR = 10.0  # times beyond the largest run: a law says nothing about what is farther
SIZES = ("model", "size", "preset", "train", "data")  # sections of settings that make a run larger or longer
DRAWS = 200


@dataclass(frozen=True, slots=True)
class Told:
    """flops: of a parameter and a token; behind: (a run, its loss by the law of the others) for the most expensive."""

    runs: "Sequence[Run]"
    fit: "Fit"
    flops: float
    budgets: "Sequence[Budget]"
    behind: "tuple[Run, float, tuple[float, float]] | None"


def run(arguments: list[str]) -> int:
    options = parser("scaling")
    options.add_argument("folders", type=Path, nargs="+", help="sweeps or runs: several sizes, several lengths")
    options.add_argument("--arm", default="", help="only runs with these settings: 'norm=rmsnorm'")
    options.add_argument("--metric", help="the score, in nats or bits; by default val/loss")
    options.add_argument(
        "--count", choices=("parameters", "non_embedding"), default="parameters", help="what counts as size"
    )
    options.add_argument("--at", help="parameters,tokens of a run to be predicted: 1e8,2e9")
    options.add_argument("--budget", type=float, help="FLOPs: the parameters and tokens they are best spent on")
    options.add_argument(
        "--far", action="store_true", help=f"also say what lies more than {FAR:g} times beyond the runs"
    )
    options.add_argument("--json", action="store_true", help="for programs")
    asked = options.parse_args(arguments)
    from ablatio.report.analysis.arms import LOSS
    from ablatio.report.read.table import read_table

    metric = asked.metric or LOSS
    table = read_table(asked.folders)
    runs = [r for r in table.counted if metric in r.scores and asked.count in r.size and _is(r, asked.arm.split())]
    _refuse_unlike(runs)
    try:
        told = _told(runs, metric, asked.count)
        places = list(_places(told, asked.at, asked.budget))
    except ValueError as error:
        raise UserError(f"{error}\n    try: ablatio train -m model.d_model=32,64,128 train.steps=200,400,800") from None
    if not asked.far:
        _refuse_far(told.fit, places)
    if asked.json:
        print(json.dumps(_plain(told, metric, places)))
    else:
        _print(told, metric, asked.count, places)
    return 0


def _is(run: "Run", settings: Sequence[str]) -> bool:
    return {*settings} <= {f"{key}={value}" for key, value in run.arm.items()}


def _refuse_unlike(runs: "Sequence[Run]") -> None:
    texts = {(r.data, r.tokenizer) for r in runs}
    if len(texts) > 1:
        raise UserError(
            f"the runs are on {len(texts)} texts or tokenizers, whose losses are not of one kind\n"
            "    try: folders of one text, or --arm 'source=sotu'"
        )


def _told(runs: "Sequence[Run]", metric: str, count: str) -> Told:
    from ablatio.report.statistics.scaling_law import budgets, fit

    n, d, z = _numbers(runs, metric, count)
    costs = [r.size.get("flops", 6 * a * b) for r, a, b in zip(runs, n, d, strict=True)]
    made = fit(n, d, z, draws=DRAWS)
    per = median(c / a / b for c, a, b in zip(costs, n, d, strict=True))
    return Told(runs, made, per, list(budgets(n, costs, z)), _behind(runs, metric, count, costs))


def _numbers(runs: "Sequence[Run]", metric: str, count: str) -> tuple[list[float], list[float], list[float]]:
    return [r.size[count] for r in runs], [r.size["tokens"] for r in runs], [r.scores[metric] for r in runs]


def _behind(
    runs: "Sequence[Run]", metric: str, count: str, costs: Sequence[float]
) -> "tuple[Run, float, tuple[float, float]] | None":
    """The most expensive run, and what the others say of it; None where they are too few."""
    from ablatio.report.statistics.scaling_law import fit

    most = max(costs)
    others = [r for r, cost in zip(runs, costs, strict=True) if cost < most]
    last = next(r for r, cost in zip(runs, costs, strict=True) if cost == most)
    try:
        made = fit(*_numbers(others, metric, count), draws=DRAWS // 2)
    except ValueError:
        return None
    place = last.size[count], last.size["tokens"]
    return last, float(made.law.loss(*place)), made.interval(lambda law: law.loss(*place))


def _places(told: Told, at: str | None, budget: float | None) -> Iterator[tuple[str, float, float]]:
    """(what is asked, parameters, tokens)."""
    if at:
        try:
            n, d = map(float, at.split(","))
        except ValueError:
            raise UserError(f"--at {at} came, parameters,tokens were expected\n    try: --at 1e8,2e9") from None
        yield "a run", n, d
    if budget:
        yield f"{budget:.3g} FLOPs are best spent on", *told.fit.law.best(budget, told.flops)


def _refuse_far(fit: "Fit", places: Sequence[tuple[str, float, float]]) -> None:
    for _, n, d in places:
        if (times := fit.beyond(n, d)) > FAR:
            raise UserError(
                f"{n:.3g} parameters and {d:.3g} tokens lie {times:.3g} times beyond the largest run, and a law that "
                f"was fitted to these says nothing sure beyond {FAR:g}\n    try: larger runs first, or --far"
            )


def _plain(told: Told, metric: str, places: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    fit = told.fit
    return {
        "metric": metric,
        "runs": len(told.runs),
        "law": {name: [value, *fit.interval(_of(name))] for name, value in asdict(fit.law).items()},
        "residuals": {run.id: residual for run, residual in zip(told.runs, fit.residuals, strict=True)},
        "flops_per_parameter_and_token": told.flops,
        "budgets": [asdict(budget) for budget in told.budgets],
        "predicted": [{"what": what, "parameters": n, "tokens": d, "loss": _at(fit, n, d)} for what, n, d in places],
    }


def _of(name: str) -> "Callable[[Law], float]":
    return lambda law: float(getattr(law, name))


def _at(fit: "Fit", n: float, d: float) -> list[float]:
    """The loss, and its interval."""
    return [float(fit.law.loss(n, d)), *fit.interval(lambda law: law.loss(n, d))]


def _print(told: Told, metric: str, count: str, places: Sequence[tuple[str, float, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.escape import terminal
    from ablatio.report.terminal.arm_table import short

    console, fit, law = Console(), told.fit, told.fit.law
    (least, most), (shortest, longest) = fit.reach
    terms = [f"{law.A:.4g} / N^{law.alpha:.3g}"] * bool(law.A) + [f"{law.B:.4g} / D^{law.beta:.3g}"] * bool(law.B)
    lines = [
        f"{terminal(metric)} of {len(told.runs)} runs: {short(least)} to {short(most)} {count.replace('_', '-')}"
        f"{' parameters' if count != 'parameters' else ''} (N), {short(shortest)} to {short(longest)} tokens (D)",
        f"L = {' + '.join([f'{law.E:.4g}', *terms])}",
    ]
    console.print("\n".join(lines), highlight=False)
    grid = Table(box=None, pad_edge=False)
    for title in ("", "fitted", "in 95 of 100 resamples"):
        grid.add_column(title, justify="right" if title else "left")
    for name, value in asdict(law).items():
        if value:
            low, high = fit.interval(_of(name))
            grid.add_row(name, f"{value:.4g}", f"[{low:.4g}, {high:.4g}]".replace("[", "\\["))
    console.print(grid, highlight=False)
    for sentence in _sentences(told, metric, places):
        console.print(terminal(sentence), highlight=False)


def _sentences(told: Told, metric: str, places: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    from ablatio.report.terminal.arm_table import short

    fit = told.fit
    residual, run = max(zip(fit.residuals, told.runs, strict=True), key=lambda pair: abs(pair[0]))
    yield f"farthest from the law: {run.title} seed={run.seed}, {residual:+.2%} of its loss"
    if others := sorted({key for r in told.runs for key in r.arm if key.split(".")[0] not in SIZES}):
        yield f"mind: the runs differ in {', '.join(others)} as well; --arm '{others[0]}=...' takes those of one value"
    if told.behind:
        last, value, (low, high) = told.behind
        yield (
            f"the most expensive run, {last.title}: the others' law says {value:.4f} [{low:.4f}, {high:.4f}], it came "
            f"to {last.scores[metric]:.4f}"
        )
    for budget in told.budgets:
        where = "" if budget.inside else ", which none of them has come to"
        yield f"{budget.runs} runs of {budget.flops:.3g} FLOPs: best at {short(budget.best)} parameters{where}"
    for what, n, d in places:
        value, low, high = _at(fit, n, d)
        yield f"{what} {short(n)} parameters and {short(d)} tokens: {value:.4f} [{low:.4f}, {high:.4f}]"
