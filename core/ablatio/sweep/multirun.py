"""`-m`: all arms are composed and checked before the first one starts; then Hydra runs them."""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ablatio import yamls
from ablatio.compose import compose_run, config_of
from ablatio.errors import AblatioError, ConfigError, Preempted, Problem, SweepFailed, UserError
from ablatio.knobs import did_you_mean
from ablatio.options import register_with_hydra
from ablatio.overrides import expand
from ablatio.paths import shipped


def hydra_flags(arguments: list[str]) -> int:
    """What Hydra itself answers: --cfg, --info, --hydra-help."""
    register_with_hydra()
    _hydra(arguments, lambda node: None)
    return 0


def multirun(overrides: list[str]) -> int:
    """Run the product of all values with commas; exit code 3 when some runs failed."""
    overrides = with_sweep_axes(overrides)
    arms = expand(overrides)
    _check_all(arms)
    folder = _sweep_folder(arms[0])
    print(f"{len(arms)} runs in {folder}", flush=True)
    done: list[tuple[str, dict[str, Any] | None]] = []
    varied = {o.split("=")[0] for o in set().union(*arms).difference(set(arms[0]).intersection(*arms[1:]))}

    def job(node: Any) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        number = int(HydraConfig.get().job.num)
        label = " ".join(o for o in HydraConfig.get().overrides.task if o.split("=")[0] in varied) or "one run"
        done.append((label, _run_arm(node, folder / str(number), f"{number + 1}/{len(arms)} {label}")))
        result = done[-1][1]
        return result["val/loss"] if result else None

    # Hydra's own folder is ours: `out` and `name` are checked, and nothing is written beside it.
    _hydra(["-m", *overrides, f"hydra.sweep.dir={json.dumps(str(folder))}"], job)
    show_table(done, folder)
    failed = sum(1 for _, result in done if result is None)
    if failed:
        raise SweepFailed(f"{failed} of {len(arms)} runs failed; each one's error is in its folder in {folder}")
    return 0


def with_sweep_axes(overrides: list[str]) -> list[str]:
    """The axes of `+sweep=NAME` as overrides; what the user gives for the same key stands instead."""
    name = next((o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("sweep=")), None)
    if name is None:
        return overrides
    files = yamls.options_of(yamls.SWEEP)
    if name not in files:
        raise UserError(
            f"there is no sweep {name}{did_you_mean(name, files)}\n    there are {', '.join(files) or 'none'}"
        )
    axes = (files[name].read().get("sweep") or {}).get("axes") or {}
    given = {o.lstrip("+").split("=")[0] for o in overrides}
    return overrides + [f"{key}={','.join(map(str, values))}" for key, values in axes.items() if key not in given]


def _check_all(arms: list[list[str]]) -> None:
    """ConfigError with the problems of every arm, named by what is special about it."""
    common = set(arms[0]).intersection(*arms[1:])
    problems: dict[str, list[str]] = {}
    for arm in arms:
        special = " ".join(o for o in arm if o not in common) or "every run"
        try:
            compose_run(arm)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(str(problem), []).append(special)
    if problems:
        raise ConfigError([Problem(_which(where, len(arms)), text) for text, where in problems.items()])


def _which(where: list[str], total: int) -> str:
    if len(where) == total:
        return "every run"
    return where[0] if len(where) == 1 else f"{len(where)} of {total} runs, such as {where[0]}"


def _sweep_folder(arm: list[str]) -> Path:
    config = compose_run(arm).config
    study = next((o.split("=", 1)[1] for o in arm if o.lstrip("+").startswith("sweep=")), "sweep")
    from ablatio.checkpoint import make_folder

    folder = Path(config["out"]).expanduser() / (config["name"] or f"{study}_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds runs already\n    try: the same command with name={folder.name}-2")
    return make_folder(folder)


def _run_arm(node: Any, folder: Path, title: str) -> dict[str, Any] | None:
    """One run of a sweep: what goes wrong in it is its own, and is written into its folder."""
    from rich.console import Console

    from ablatio.checkpoint import make_folder, write_text
    from ablatio.tasks.run import train

    print(f"[{title}]", flush=True)
    try:
        public, settings = config_of(node)
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
