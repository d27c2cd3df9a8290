"""`ablatio scaling FOLDER...`: fit a scaling law to runs of several sizes and lengths, and plan a budget with it."""

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

FAR = 10.0  # largest extrapolation, as a multiple of the largest run; predictions beyond it are not reliable
SIZES = ("model", "size", "preset", "train", "data")  # sections whose settings change the size or length of a run
DRAWS = 200  # bootstrap resamples


@dataclass(frozen=True, slots=True)
class ScalingResult:
    """A fitted scaling law with what is reported about it.

    flops: training FLOPs per parameter and token (median of the runs)
    largest: the most expensive run, its loss predicted by a fit to the other runs, and the interval of that prediction
    """

    runs: "Sequence[Run]"
    fit: "Fit"
    flops: float
    budgets: "Sequence[Budget]"
    largest: "tuple[Run, float, tuple[float, float]] | None"


def run(arguments: list[str]) -> int:
    """Run `ablatio scaling` and return its exit code."""
    options = parser("scaling")
    options.add_argument("folders", type=Path, nargs="+", help="sweeps or runs with several model sizes and lengths")
    options.add_argument("--arm", default="", help="only runs with these settings: 'norm=rmsnorm'")
    options.add_argument("--metric", help="the score, in nats or bits; by default val/loss")
    options.add_argument(
        "--count", choices=("parameters", "non_embedding"), default="parameters", help="which parameters are counted"
    )
    options.add_argument("--at", help="predict a run with these parameters,tokens: 1e8,2e9")
    options.add_argument("--budget", type=float, help="predict the best parameters and tokens for this many FLOPs")
    options.add_argument(
        "--far", action="store_true", help=f"allow predictions more than {FAR:g} times beyond the largest run"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_args(arguments)
    from ablatio.report.analysis.arms import LOSS
    from ablatio.report.read.table import read_table

    metric = args.metric or LOSS
    table = read_table(args.folders)
    runs = [
        r for r in table.counted if metric in r.scores and args.count in r.size and _has_settings(r, args.arm.split())
    ]
    _check_comparable(runs)
    try:
        result = _fit_runs(runs, metric, args.count)
        places = list(_requested(result, args.at, args.budget))
    except ValueError as error:
        raise UserError(f"{error}\n    try: ablatio train -m model.d_model=32,64,128 train.steps=200,400,800") from None
    if not args.far:
        _check_distance(result.fit, places)
    if args.json:
        print(json.dumps(_to_json(result, metric, places)))
    else:
        _print(result, metric, args.count, places)
    return 0


def _has_settings(run: "Run", settings: Sequence[str]) -> bool:
    return {*settings} <= {f"{key}={value}" for key, value in run.arm.items()}


def _check_comparable(runs: "Sequence[Run]") -> None:
    texts = {(r.data, r.tokenizer) for r in runs}
    if len(texts) > 1:
        raise UserError(
            f"the runs use {len(texts)} different texts or tokenizers, so their losses are not comparable\n"
            "    try: folders with one text, or --arm 'source=sotu'"
        )


def _fit_runs(runs: "Sequence[Run]", metric: str, count: str) -> ScalingResult:
    from ablatio.report.statistics.scaling_law import budgets, fit

    n, d, z = _numbers(runs, metric, count)
    costs = [r.size.get("flops", 6 * a * b) for r, a, b in zip(runs, n, d, strict=True)]
    made = fit(n, d, z, draws=DRAWS)
    per = median(c / a / b for c, a, b in zip(costs, n, d, strict=True))
    return ScalingResult(runs, made, per, list(budgets(n, costs, z)), _predict_largest(runs, metric, count, costs))


def _numbers(runs: "Sequence[Run]", metric: str, count: str) -> tuple[list[float], list[float], list[float]]:
    return [r.size[count] for r in runs], [r.size["tokens"] for r in runs], [r.scores[metric] for r in runs]


def _predict_largest(
    runs: "Sequence[Run]", metric: str, count: str, costs: Sequence[float]
) -> "tuple[Run, float, tuple[float, float]] | None":
    """The most expensive run and its loss as predicted by a fit to the others; None if those are too few to fit."""
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


def _requested(result: ScalingResult, at: str | None, budget: float | None) -> Iterator[tuple[str, float, float]]:
    """(description, parameters, tokens) of each prediction requested by --at and --budget."""
    if at:
        try:
            n, d = map(float, at.split(","))
        except ValueError:
            raise UserError(f"--at {at}: expected PARAMETERS,TOKENS\n    try: --at 1e8,2e9") from None
        yield "a run", n, d
    if budget:
        yield f"best use of {budget:.3g} FLOPs:", *result.fit.law.best(budget, result.flops)


def _check_distance(fit: "Fit", places: Sequence[tuple[str, float, float]]) -> None:
    for _, n, d in places:
        if (times := fit.beyond(n, d)) > FAR:
            raise UserError(
                f"{n:.3g} parameters and {d:.3g} tokens are {times:.3g} times beyond the largest run; a prediction "
                f"more than {FAR:g} times beyond it is not reliable\n    try: --far, or train larger runs first"
            )


def _to_json(result: ScalingResult, metric: str, places: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    fit = result.fit
    return {
        "metric": metric,
        "runs": len(result.runs),
        "law": {name: [value, *fit.interval(_coefficient(name))] for name, value in asdict(fit.law).items()},
        "residuals": {run.id: residual for run, residual in zip(result.runs, fit.residuals, strict=True)},
        "flops_per_parameter_and_token": result.flops,
        "budgets": [asdict(budget) for budget in result.budgets],
        "predicted": [
            {"what": what, "parameters": n, "tokens": d, "loss": _loss_at(fit, n, d)} for what, n, d in places
        ],
    }


def _coefficient(name: str) -> "Callable[[Law], float]":
    return lambda law: float(getattr(law, name))


def _loss_at(fit: "Fit", n: float, d: float) -> list[float]:
    """Predicted loss and the ends of its interval."""
    return [float(fit.law.loss(n, d)), *fit.interval(lambda law: law.loss(n, d))]


def _print(result: ScalingResult, metric: str, count: str, places: Sequence[tuple[str, float, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.escape import terminal
    from ablatio.report.terminal.arm_table import short

    console, fit, law = Console(), result.fit, result.fit.law
    (least, most), (shortest, longest) = fit.reach
    terms = [f"{law.A:.4g} / N^{law.alpha:.3g}"] * bool(law.A) + [f"{law.B:.4g} / D^{law.beta:.3g}"] * bool(law.B)
    lines = [
        f"{terminal(metric)} of {len(result.runs)} runs: {short(least)} to {short(most)} {count.replace('_', '-')}"
        f"{' parameters' if count != 'parameters' else ''} (N), {short(shortest)} to {short(longest)} tokens (D)",
        f"L = {' + '.join([f'{law.E:.4g}', *terms])}",
    ]
    console.print("\n".join(lines), highlight=False)
    grid = Table(box=None, pad_edge=False)
    for title in ("", "fitted", "in 95 of 100 resamples"):
        grid.add_column(title, justify="right" if title else "left")
    for name, value in asdict(law).items():
        if value:
            low, high = fit.interval(_coefficient(name))
            grid.add_row(name, f"{value:.4g}", f"[{low:.4g}, {high:.4g}]".replace("[", "\\["))
    console.print(grid, highlight=False)
    for sentence in _sentences(result, metric, places):
        console.print(terminal(sentence), highlight=False)


def _sentences(result: ScalingResult, metric: str, places: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    from ablatio.report.terminal.arm_table import short

    fit = result.fit
    residual, run = max(zip(fit.residuals, result.runs, strict=True), key=lambda pair: abs(pair[0]))
    yield f"largest residual: {run.title} seed={run.seed}, {residual:+.2%} of its loss"
    if others := sorted({key for r in result.runs for key in r.arm if key.split(".")[0] not in SIZES}):
        yield f"note: the runs also differ in {', '.join(others)}; --arm '{others[0]}=...' selects those of one value"
    if result.largest:
        last, value, (low, high) = result.largest
        yield (
            f"most expensive run, {last.title}: {value:.4f} [{low:.4f}, {high:.4f}] predicted from the other runs, "
            f"{last.scores[metric]:.4f} measured"
        )
    for budget in result.budgets:
        where = "" if budget.inside else ", outside the sizes of these runs"
        yield f"{budget.runs} runs of {budget.flops:.3g} FLOPs: best at {short(budget.best)} parameters{where}"
    for what, n, d in places:
        value, low, high = _loss_at(fit, n, d)
        yield f"{what} {short(n)} parameters and {short(d)} tokens: {value:.4f} [{low:.4f}, {high:.4f}]"
