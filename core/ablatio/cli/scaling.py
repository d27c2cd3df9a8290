"""`ablatio scaling FOLDER...`: fit a scaling law to runs of several sizes and lengths, and plan a budget with it."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.errors import UserError

if TYPE_CHECKING:
    from ablatio.report.analysis.scaling import Prediction, ScalingResult
    from ablatio.report.analysis.scaling_verdict import ArmTrend
    from ablatio.report.read.run import Run
    from ablatio.report.read.table import Table

FAR = 10.0  # largest extrapolation, as a multiple of the largest run; predictions beyond it are not reliable
USES = {"without --at and --budget": (), "with --at or --budget": ("far",)}
LAWS = ("auto", "chinchilla", "kaplan", "compute", "repeated", "routed")


def run(arguments: list[str]) -> int:
    """Run `ablatio scaling` and return its exit code."""
    options = _options()
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][(args.at, args.budget) != (None, None)])
    at, planned = _place(args.at), _budgets(args.budgets)
    if args.budget is not None and not _is_positive(args.budget):
        raise UserError(f"--budget {args.budget:g}: expected FLOPs above 0\n    try: --budget 1e18")
    from ablatio.report.analysis.arms import LOSS
    from ablatio.report.analysis.scaling import arm_laws, choose_law, fit_runs
    from ablatio.report.read.table import read_table

    metric = args.metric or LOSS
    table = read_table(args.folders)
    runs = [r for r in table.counted if _usable(r, metric, args.count) and _has_settings(r, args.arm.split())]
    _check_comparable(runs)
    # What --at asks is known before the fit, which takes long; what --budget gives is known only after it.
    if at and runs and not args.far:
        _check_distance(runs, args.count, *at)
    found = _trends(table, metric, args.baseline)
    try:
        law = choose_law(runs) if args.law == "auto" else args.law
        result = fit_runs(runs, metric, law, args.count, planned)
        if not args.arm:
            result = replace(result, arms=arm_laws(table, metric, law, args.count))
        places = list(_predictions(result, at, args.budget))
    except ValueError as error:
        raise UserError(f"{error}\n    try: ablatio train -m model.d_model=32,64,128 train.steps=200,400,800") from None
    for place in places if not args.far else ():
        _check_distance(runs, args.count, place.n, place.d)
    if args.html:
        _write_page(args.html, result, places, found, table)
    if args.json:
        print(json.dumps(_to_json(result, places, found)))
    else:
        from ablatio.report.terminal.scaling_table import show_scaling

        show_scaling(result, places, found)
        if args.html:
            print(f"written: {args.html}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser("scaling")
    options.add_argument("folders", type=Path, nargs="+", help="sweeps or runs with several model sizes and lengths")
    options.add_argument("--arm", default="", help="fit only runs with these settings: 'norm=rmsnorm'")
    options.add_argument("--baseline", help="arm whose difference to the others is followed over the sizes")
    options.add_argument("--metric", help="the score, in nats or bits; by default val/loss")
    options.add_argument(
        "--law", choices=LAWS, default="auto",
        help="chinchilla: L(N, D); kaplan: L(N), L(D) or L(N, D) without an irreducible loss; compute: L(C); "
        "repeated: epochs count less; routed: mixtures of experts; auto: by what the runs vary",
    )  # fmt: skip
    options.add_argument(
        "--count", choices=("parameters", "non_embedding", "active"), default="parameters",
        help="which parameters are counted",
    )  # fmt: skip
    options.add_argument("--at", help="predict a run with these parameters,tokens: 1e8,2e9")
    options.add_argument("--budget", type=float, help="predict the best parameters and tokens for this many FLOPs")
    options.add_argument(
        "--budgets", default="",
        help="planned budgets in FLOPs, by which runs of equal cost are grouped: 1e15,1e16; by default they are found",
    )  # fmt: skip
    options.add_argument(
        "--far", action="store_true", help=f"allow predictions more than {FAR:g} times beyond the largest run"
    )
    options.add_argument("--html", type=Path, help="write a page with the fit, its residuals and the budgets")
    options.add_argument("--json", action="store_true", help="print JSON")
    return options


def _usable(run: "Run", metric: str, count: str) -> bool:
    return metric in run.scores and "tokens" in run.size and (count == "active" or count in run.size)


def _has_settings(run: "Run", settings: Sequence[str]) -> bool:
    return {*settings} <= {f"{key}={value}" for key, value in run.arm.items()}


def _check_comparable(runs: "Sequence[Run]") -> None:
    texts = {(r.data, r.tokenizer) for r in runs}
    if len(texts) > 1:
        raise UserError(
            f"the runs use {len(texts)} different texts or tokenizers, so their losses are not comparable\n"
            "    try: folders with one text, or --arm 'source=sotu'"
        )


def _trends(table: "Table", metric: str, baseline: str | None) -> "list[ArmTrend]":
    """Trends over the sizes of the whole table: --arm chooses what is fitted, not what is compared."""
    from ablatio.report.analysis.arms import arms_of, higher_is_better
    from ablatio.report.analysis.scaling_verdict import arm_trends

    better = "high" if higher_is_better(table, metric) else "low"
    return arm_trends(arms_of(table, metric, baseline), better, float(table.study.settings.get("alpha", 0.05)))


def _place(at: str | None) -> tuple[float, float] | None:
    """Parameters and tokens of --at."""
    if not at:
        return None
    try:
        n, d = map(float, at.split(","))
    except ValueError:
        raise UserError(f"--at {at}: expected PARAMETERS,TOKENS\n    try: --at 1e8,2e9") from None
    if not (_is_positive(n) and _is_positive(d)):
        raise UserError(f"--at {at}: parameters and tokens must be above 0\n    try: --at 1e8,2e9")
    return n, d


def _budgets(text: str) -> list[float]:
    """FLOPs of --budgets."""
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [0.0]
    if not all(map(_is_positive, found)):
        raise UserError(f"--budgets {text}: expected FLOPs above 0\n    try: --budgets 1e15,1e16")
    return found


def _is_positive(number: float) -> bool:
    """True for a finite number above 0; NaN is none."""
    return 0 < number < math.inf


def _predictions(
    result: "ScalingResult", at: tuple[float, float] | None, budget: float | None
) -> "Iterator[Prediction]":
    """The predictions requested by --at and --budget."""
    from ablatio.report.analysis.scaling import predict, predict_budget

    if at:
        yield predict(result, *at)
    if budget is not None:
        yield predict_budget(result, budget)


def _check_distance(runs: "Sequence[Run]", count: str, n: float, d: float) -> None:
    from ablatio.report.analysis.scaling_data import parameters

    largest, longest = max(parameters(r, count) for r in runs), max(r.size["tokens"] for r in runs)
    if (times := max(n / largest, d / longest)) > FAR:
        raise UserError(
            f"{n:.3g} parameters and {d:.3g} tokens are {times:.3g} times beyond the largest run; a prediction more "
            f"than {FAR:g} times beyond it is not reliable\n    try: --far, or train larger runs first"
        )


def _write_page(
    path: Path, result: "ScalingResult", places: "Sequence[Prediction]", found: "Sequence[ArmTrend]", table: "Table"
) -> None:
    from ablatio.report.html.scaling_page import scaling_page
    from ablatio.storage.atomic_write import make_folder, write_text

    make_folder(path.parent)
    write_text(path, scaling_page(result, places, found, table.study.question or table.study.name))


def _to_json(result: "ScalingResult", places: "Sequence[Prediction]", found: "Sequence[ArmTrend]") -> dict[str, Any]:
    from ablatio.report.analysis.scaling_text import sentences
    from ablatio.report.html.page_data import clean

    fit = result.fit
    made = {
        "metric": result.metric, "runs": len(result.runs), "name": result.law, "formula": fit.form.formula,
        "law": {name: [value, *fit.coefficient_interval(name)] for name, value in fit.coefficients.items()},
        "residuals": {run.id: residual for run, residual in zip(result.runs, fit.residuals, strict=True)},
        "noise": fit.noise, "seed_noise": fit.seed_noise,
        "flops_per_parameter_and_token": result.per,
        "budgets": [asdict(budget) for budget in result.budgets], "exponent_of_budgets": result.power,
        "envelope": result.envelope and {
            "exponent": [result.envelope.exponent, result.envelope.low, result.envelope.high],
            "sizes": result.envelope.sizes,
        },
        "tasks": {name: task.coefficients for name, task in result.tasks.items()},
        "held_out": result.held_out and asdict(result.held_out),
        "predicted": [
            {"parameters": p.n, "tokens": p.d, "loss": [p.loss, p.low, p.high], "run": [p.run_low, p.run_high],
             "epochs": p.epochs, "effective_tokens": p.effective, "budget": p.budget}
            for p in places
        ],
        "arms": {name: own.coefficients for name, own in result.arms.items()},
        "trends": [
            {"arm": t.arm, "base": t.base, "kind": t.kind, "p": t.p, "diverged": t.diverged} | asdict(t.trend)
            for t in found
        ],
        "sentences": sentences(result, places),
    }  # fmt: skip
    return clean(made)  # type: ignore[no-any-return]
