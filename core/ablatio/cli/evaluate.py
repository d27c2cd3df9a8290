"""`ablatio evaluate RUN`: loss on held-out text at any length, evaluations and metrics by name, or lm-eval's tasks.

With evaluations, RUN may be a study: all its finished runs are measured.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.errors import UserError
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import shell_word
from ablatio.sweep.study import STUDY

if TYPE_CHECKING:
    from ablatio.api.evaluations import RunEvaluation

EPILOG = """\
  ablatio evaluate RUN                                  held-out text; ± is the standard error of the loss
  ablatio evaluate RUN --with RUN2 --with RUN3          the mean of the probabilities of several runs
  ablatio evaluate RUN eval=[addition,minimal_pairs]    evaluations; `ablatio list eval` and `ablatio list metric`
  ablatio evaluate STUDY eval=[addition]                the same of every finished run of a study; again: of the others
  ablatio evaluate RUN task=my_task.yaml                a task file in lm-eval's format
  ablatio evaluate RUN lm_eval=my_task --include tasks  lm-eval itself, on the exported run"""
TASK, LM_EVAL = "task=", "lm_eval="
SUFFIXES = (".yaml", ".yml")
# Flags of each use; another one would have no effect.
USES = {
    "on lm_eval=": ("include", "limit", "step"),
    "on a study": ("run_code",),
    "on eval=": ("run_code", "step"),
    "on held-out text": ("length", "tokens", "step", "objective", "quantization", "stride", "adapt", "adapter", "also"),
    "with --with": ("length", "tokens", "step", "objective", "stride", "also"),
}


def run(arguments: list[str]) -> int:
    """Run `ablatio evaluate` and return its exit code: 2 if no length could be scored."""
    options = parser("evaluate", epilog=EPILOG)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("run", type=Path, help="a run folder; with eval=, a study, too")
    options.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of eval and metric; task=, lm_eval=")
    options.add_argument("--length", help="tokens per row, or several lengths: 128,256; by default that of training")
    options.add_argument("--tokens", type=int, default=0, help="maximum number of tokens to score; by default all")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    options.add_argument("--objective", help="objective whose targets are scored; by default that of training")
    options.add_argument("--quantization", help="also score the quantized model: int8, int4, gptq")
    options.add_argument("--run-code", action="store_true", help="let metrics run programs that the model wrote")
    options.add_argument("--include", type=Path, help="with lm_eval=: folder of task files")
    options.add_argument("--limit", type=int, help="with lm_eval=: largest number of items of a task")
    options.add_argument("--stride", type=int, help="score with overlapping rows that begin this many tokens apart")
    options.add_argument(
        "--adapt", type=float, help="test-time training: after a batch is scored, a step on it with this learning rate"
    )
    options.add_argument("--adapter", help="with --adapt: the peft method whose new weights are trained, as lora")
    options.add_argument(
        "--with", dest="also", type=Path, action="append", metavar="RUN2",
        help="score the mean of the probabilities of RUN and this run, which has the same tokenizer; may be repeated",
    )  # fmt: skip
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_intermixed_args(arguments)
    use, act = _use(args)
    refuse_other_flags(options, arguments, args, USES, use if use in USES else f"on {use}")
    return act(args)


def _use(args: argparse.Namespace) -> tuple[str, Callable[[argparse.Namespace], int]]:
    """Return a name for what is measured, and the function that measures it."""
    if any(word.startswith(LM_EVAL) for word in args.words):
        return LM_EVAL, _lm_eval
    if (args.run / STUDY).exists():
        return "a study", _study
    if args.words:
        return "eval=", _evaluations
    return ("held-out text", _lengths_of) if not args.also else ("with --with", _together)


def _study(args: argparse.Namespace) -> int:
    """Measure all finished runs of a study by evaluations; returns 3 if some cannot be measured."""
    from ablatio.api.studies import open_study

    if not args.words:
        raise UserError(
            f"{args.run} is a study, and a study is measured by evaluations\n"
            f"    try: ablatio evaluate {shell_word(args.run)} eval=[held_out]"
        )
    study = open_study(args.run)
    rows = list[dict[str, Any]]()

    def tell(one: "RunEvaluation") -> None:
        rows.append({"run": str(one.run.folder), "seed": one.run.seed, "arm": dict(one.run.arm), "state": one.state,
                     "values": {column: dict(value) for column, value in one.values.items()}})  # fmt: skip
        if not args.json:
            print(f"{one.run.title} seed={one.run.seed}: {one.state}{': ' * bool(one.why)}{one.why}", flush=True)
            # The main values alone; further values of a metric stand one level deeper.
            for line in described({c: v for c, v in one.values.items() if c.count("/") == 2}):
                print(f"  {line}", flush=True)

    from ablatio.training.evaluation.evaluation import described

    found = study.evaluate(*_overrides(args.words), code=args.run_code, tell=tell)
    column = next(iter(found[0].values or found[-1].values), "")
    if args.json:
        print(json.dumps({"study": str(args.run), "runs": rows}))
    else:
        print(f"the report has these values: ablatio report {args.run} --metric {column}")
    return 3 if any(one.state == "failed" for one in found) else 0


def _evaluations(args: argparse.Namespace) -> int:
    """Measure the run by evaluations; the items are kept in its folder."""
    from ablatio.api.run_folder import open_run
    from ablatio.training.evaluation.evaluation import described
    from ablatio.training.evaluation.items_file import ITEMS

    run = open_run(args.run, args.step)
    found = run.measure(*_overrides(args.words), code=args.run_code)
    if args.json:
        print(json.dumps({"run": str(args.run), "step": run.step, "values": found}))
    else:
        print(f"{args.run} at step {run.step}; items in {args.run / ITEMS}")
        for line in described(found):
            print(line)
    return 0


def _overrides(words: Sequence[str]) -> list[str]:
    """Overrides of `eval` and `metric`; `task=` names one evaluation or one task file."""
    found = []
    for word in words:
        name = word.removeprefix(TASK)
        if not word.startswith(TASK):
            found.append(word)
        elif name.endswith(SUFFIXES):
            part = _task_reader()
            found += [f"eval=[{part}]", f"eval.{part}.path={name}"]
        else:
            found.append(f"eval=[{name}]")
    return found


def _task_reader() -> str:
    """Name of the evaluation that reads task files (fact `reads_tasks`)."""
    found = [entry.name for entry in REGISTRIES["eval"] if entry.facts["reads_tasks"]]
    if not found:
        raise UserError("no installed evaluation reads task files\n    try: ablatio list eval")
    return found[0]


def _lm_eval(args: argparse.Namespace) -> int:
    """Run lm-eval on the exported run."""
    from ablatio.cli.export import export_to
    from ablatio.interop.lm_eval_tasks import lm_eval_scores

    tasks = [name for word in args.words for name in word.removeprefix(LM_EVAL).split(",") if word.startswith(LM_EVAL)]
    if other := [word for word in args.words if not word.startswith(LM_EVAL)]:
        raise UserError(f"{other[0]} is no setting of lm-eval\n    try: ablatio evaluate RUN lm_eval={tasks[0]}")
    found = lm_eval_scores(lambda folder: export_to(args.run, folder, args.step), tasks, args.include, args.limit)
    if args.json:
        print(json.dumps({"run": str(args.run), "scores": found}))
        return 0
    for task, values in found.items():
        print(task + "  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return 0


def _lengths_of(args: argparse.Namespace) -> int:
    """Score held-out text at one or several lengths."""
    lengths = _lengths(args.length)
    from ablatio.api.run_folder import open_run

    run = open_run(args.run, args.step)
    if args.adapt is not None and not 0 < args.adapt < math.inf:
        raise UserError(f"--adapt is a learning rate above 0, got {args.adapt}\n    try: --adapt 0.01")
    if args.adapter is not None:
        REGISTRIES["peft"][args.adapter]  # an unknown name is refused before the run is loaded
    scoring = {"stride": args.stride, "adapt": args.adapt, "adapter": args.adapter}
    found = run.evaluate_lengths(
        lengths, tokens=args.tokens, objective=args.objective, quantization=args.quantization, **scoring
    )
    rows = [row for row in found if "refused" not in row]
    if args.json:
        print(json.dumps({"run": str(args.run), "step": run.step, "scores": found}))
    else:
        print(f"{args.run} at step {run.step}")
        _show_lengths(found)
    return 0 if rows else 2


def _together(args: argparse.Namespace) -> int:
    """Score held-out text by the mean of the probabilities of several runs."""
    from ablatio.api.ensembles import evaluate_together
    from ablatio.api.run_folder import open_run

    runs = [open_run(args.run, args.step), *map(open_run, args.also)]
    found = evaluate_together(
        runs, _lengths(args.length), tokens=args.tokens, objective=args.objective, stride=args.stride
    )
    if args.json:
        print(json.dumps({"runs": [str(run.folder) for run in runs], "scores": found}))
    else:
        print(f"{args.run} alone, and the mean of its probabilities and those of {', '.join(map(str, args.also))}")
        _show_lengths(found)
    return 0 if any("refused" not in row for row in found) else 2


def _show_lengths(found: Sequence[dict[str, Any]]) -> None:
    """Print a line for each length, with one for each source of a mixture below it, then the refused ones."""
    for row in (row for row in found if "refused" not in row):
        untold = ("length", "stride", "adapt", "quantization", *_UNTOLD)
        shown = {k: v for k, v in row.items() if k not in untold and "/" not in k}
        told = "  ".join(_told(k, v, "bpb" in row, row.get("error")) for k, v in shown.items())
        print(f"length {row['length']:>5}  {told}" + (f"  {row['quantization']}" if "quantization" in row else ""))
        for source in dict.fromkeys(k.partition("/")[2] for k in row if "/" in k):
            own = {k.partition("/")[0]: v for k, v in row.items() if k.partition("/")[2] == source}
            print(f"  {source}  " + "  ".join(_told(k, v, "bpb" in own, None) for k, v in own.items()))
    for row in (row for row in found if "refused" in row):
        print(f"length {row['length']:>5}  refused: {row['refused']}")


_UNITS = {"loss": "nats/token", "bpb": "bits/byte", "tokens": "tokens", "cost": "nats increase"}
_UNTOLD = ("accuracy", "error")


def _told(name: str, value: float, text: bool, error: float | None) -> str:
    """A value with its unit; `error` is the standard error of the loss over the held-out text."""
    number = str(value) if isinstance(value, int) else f"{value:.4f}"
    number += f" ± {error:.4f}" if name == "loss" and error is not None else ""
    return f"{number} {_UNITS.get(name, name) if text else name}"


def _lengths(text: str | None) -> list[int]:
    try:
        lengths = [int(part) for part in (text or "").split(",") if part]
    except ValueError:
        lengths = [0]
    if any(n < 1 for n in lengths):
        raise UserError(f"--length {text}: expected positive integers\n    try: --length 128,256")
    return lengths
