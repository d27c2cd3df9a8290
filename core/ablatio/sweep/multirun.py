"""`-m`: all arms are planned and checked before the first one starts; then they run one after the other."""

import sys
import time
import traceback
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ablatio.compose import config_of
from ablatio.errors import AblatioError, Preempted, SweepFailed, UserError
from ablatio.options import register_with_hydra
from ablatio.paths import shipped
from ablatio.sweep.plan import Plan, plan_sweep
from ablatio.sweep.study import Job, label_of


def hydra_flags(arguments: list[str]) -> int:
    """What Hydra itself answers: --cfg, --info, --hydra-help."""
    register_with_hydra()
    _hydra(arguments, lambda node: None)
    return 0


def multirun(overrides: list[str]) -> int:
    """Plan the sweep and run its jobs; exit code 3 when some failed."""
    plan = plan_sweep(overrides)
    folder = _sweep_folder(plan)
    for refused in plan.study.refused:
        print(f"refused: {label_of(refused.arm)}: {refused.why}", file=sys.stderr)
    print(f"{len(plan.jobs)} runs in {folder}", flush=True)
    done: list[tuple[str, dict[str, Any] | None]] = []
    for job in plan.jobs:
        name = f"{job.label} seed={job.seed}"
        done.append((name, _run_arm(job, folder / str(len(done)), f"{len(done) + 1}/{len(plan.jobs)} {name}")))
    show_table(done, folder)
    failed = sum(1 for _, result in done if result is None)
    if failed:
        raise SweepFailed(f"{failed} of {len(done)} runs failed; each one's error is in its folder in {folder}")
    return 0


def _sweep_folder(plan: Plan) -> Path:
    from ablatio.checkpoint import make_folder

    name = plan.config["name"] or f"{plan.study.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder = Path(plan.config["out"]).expanduser() / name
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds runs already\n    try: the same command with name={folder.name}-2")
    return make_folder(folder)


def _run_arm(job: Job, folder: Path, title: str) -> dict[str, Any] | None:
    """One run of a sweep: what goes wrong in it is its own, and is written into its folder."""
    from rich.console import Console

    from ablatio.checkpoint import make_folder, write_text
    from ablatio.tasks.run import train

    print(f"[{title}]", flush=True)
    try:
        public, settings = config_of(OmegaConf.create(dict(job.config)))
        summary = train(settings, public, make_folder(folder), Console())
        print(f"    val {summary['val/bpb']:.4f} bits/byte, {summary['val/loss']:.4f} nats/token", flush=True)
        return summary
    except Preempted:
        raise SystemExit(Preempted.exit_code) from None
    except AblatioError as error:
        print(f"    failed: {error}", file=sys.stderr)
        write_text(folder / "error.txt", str(error))
    except Exception as error:  # a part may raise anything; the next arm is none of its business
        print(f"    failed: {type(error).__name__}: {error}; see {folder / 'error.txt'}", file=sys.stderr)
        write_text(folder / "error.txt", traceback.format_exc())
    return None


def show_table(done: list[tuple[str, dict[str, Any] | None]], folder: Path) -> None:
    """The arms by their held-out loss; failed ones last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(done)} runs in {escape(str(folder))}", title_justify="left", box=None, pad_edge=False)
    for column in ("arm", "bits/byte", "nats/token", "parameters", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
    ordered = sorted(done, key=lambda pair: pair[1]["val/loss"] if pair[1] else float("inf"))
    for label, result in ordered:
        if result is None:
            table.add_row(escape(label), "failed")
        else:
            numbers = (f"{result['val/bpb']:.4f}", f"{result['val/loss']:.4f}", f"{result['parameters']:,}")
            table.add_row(escape(label), *numbers, f"{result['seconds']:.0f}")
    Console().print(table)


def _hydra(arguments: list[str], task: Any) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    old, sys.argv = sys.argv, ["ablatio", *arguments]
    try:
        hydra.main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(task)()
    finally:
        sys.argv = old
