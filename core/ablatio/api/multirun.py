"""Sweeps (`-m`): plan and check all arms before the first one starts, then run what is not done."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ablatio.api.session_parts import parts_file_of, refuse_session_parts
from ablatio.config import kept_files
from ablatio.config.packages import check_packages
from ablatio.errors import AblatioError, Preempted, SweepFailed, UserError
from ablatio.registry.kinds import launchers
from ablatio.registry.parts_file import COPY, refuse_another
from ablatio.registry.parts_file import current as parts_file
from ablatio.registry.parts_file import words as parts_words
from ablatio.report.analysis.arms import short_names
from ablatio.report.terminal.live_table import LiveTable
from ablatio.report.terminal.plan_table import show
from ablatio.report.terminal.stage_table import show_recipes, show_results
from ablatio.storage.atomic_write import make_folder, write_text
from ablatio.storage.paths import shell_word
from ablatio.sweep.engine import Engine, Result
from ablatio.sweep.input_files import check_sources
from ablatio.sweep.launcher_choice import LauncherChoice, chosen_launcher, long_form
from ablatio.sweep.ledger import Ledger
from ablatio.sweep.plan import Plan, current, plan_sweep
from ablatio.sweep.request import lasting, notes
from ablatio.sweep.score import UNITS, cost_of, score_of
from ablatio.sweep.stale_jobs import in_words
from ablatio.sweep.study import LEDGER, RUNS, STUDY, Study
from ablatio.sweep.worker import with_parts, work

KNOBS = ("workers", "timeout")  # sweep settings that are passed on as knobs of the launcher
HANG = "hang"
PASSING = ("retry", "join")  # settings of one command only: not stored, so not repeated on resume


def multirun(overrides: Sequence[str], folder: Path | None = None, *, quiet: bool = False) -> Path:
    """Plan the sweep, run what is not done, and return its folder.

    overrides  settings as on the command line
    folder     of a study to continue; None: a new one, or the one that `name` chooses
    quiet      print nothing, and skip the estimate, which takes seconds

    Raises ConfigError for invalid arms, UserError for a folder of another study, SweepFailed if some runs failed.
    """
    # This process computes little.  Without torch threads it can be forked, so that runs need not import again.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = [long_form(text) for text in overrides]
    for text in settings:
        if text.startswith(("hydra/sweeper", "hydra.sweeper")):
            raise UserError(f"{text} came, but ablatio plans the arms itself\n    try: design=full, or another")
    launcher = chosen_launcher(settings)
    plan = plan_sweep(settings, folder)
    plan.study.overrides = [text for text in settings if text.split("=")[0] not in PASSING]
    refuse_session_parts(plan)
    _refuse_several_machines(plan)
    plan.study.parts_file = parts_file_of(plan)
    check_packages([job.config for job in plan.jobs], [launchers[launcher.name]])
    check_sources(plan.jobs, plan.config)
    folder = folder or _folder(plan)
    _execute(plan, folder, _stale_jobs(folder, plan), launcher, quiet)
    return folder


def resume(folder: Path, overrides: Sequence[str], *, quiet: bool = False) -> Path:
    """Run what is not done of the study in `folder`.

    overrides  launcher, workers, timeout, hang, retry, join: how the study is executed; UserError for any other setting
    """
    allowed = (*KNOBS, HANG, *PASSING)
    for text in map(long_form, overrides):
        key = text.split("=")[0]
        if key not in allowed and not key.startswith(("hydra/launcher", "hydra.launcher")):
            raise UserError(
                f"{text} came: a study that is resumed keeps its settings; {', '.join(allowed)} and launcher can "
                f"change\n    try: ablatio resume {shell_word(folder)}"
            )
    study = Study.read(folder)
    refuse_another(study.parts_file, folder)
    given = {long_form(text).split("=")[0] for text in overrides}
    kept = [text for text in study.overrides if text.split("=")[0] not in given]
    with kept_files.kept(study.files, folder):
        return multirun([*kept, *overrides], folder, quiet=quiet)


def _refuse_several_machines(plan: Plan) -> None:
    """Raise UserError if a run of the plan uses several machines: launchers start one process for each run."""
    for config in (plan.config, *(job.config for job in plan.jobs)):
        trainer = config.get("trainer", {})
        if int(trainer.get("nodes", 1)) > 1:
            raise UserError(
                f"trainer.nodes={trainer['nodes']}: the devices of a sweep's run are on one machine\n"
                f"    try: trainer.nodes=1 trainer.devices={int(trainer['devices']) * int(trainer['nodes'])}, or train "
                "that run by itself (docs/howto/devices.md)"
            )


def _folder(plan: Plan) -> Path:
    """Folder of a new study, OUT/NAME; the default name is that of the study with the time."""
    name = plan.config["name"] or f"{plan.study.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    return Path(plan.config["out"]).expanduser() / name


def _stale_jobs(folder: Path, plan: Plan) -> list[str]:
    """Return the folder's jobs that the plan replaces: same command, but the code of a part has changed.

    Raises UserError if the folder holds another study.  Accepted are the same study again, and one with additional
    jobs.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return []
    other = f"    try: the same command with name={folder.name}-2"
    if not (folder / STUDY).exists():
        raise UserError(f"{folder} holds files but no study: it has no {STUDY}\n{other}")
    old, planned = Study.read(folder), {job.id for job in plan.jobs}
    entries = Ledger(folder / LEDGER).read()
    missing = [name for name, entry in entries.items() if name not in planned and entry.state != "replaced"]
    if missing and lasting(old.overrides) != lasting(plan.study.overrides):
        raise UserError(
            f"{folder} holds another study: {len(missing)} of its jobs do not belong to this one\n{other}, or "
            f"`ablatio resume {shell_word(folder)}`"
        )
    if missing and plan.adaptive:  # a search may have planned more jobs since
        missing = [name for name in missing if name not in current(folder)]
    return missing


def _execute(plan: Plan, folder: Path, replaced: Sequence[str], choice: LauncherChoice, quiet: bool = False) -> int:
    """Run the jobs of the plan and print tables; SweepFailed if some failed."""
    from rich.console import Console

    settings = plan.settings
    knobs = {**choice.knobs, **{key: settings[key] for key in KNOBS if settings[key] is not None}}
    launcher = launchers.build(choice.name, knobs, work=with_parts(work))
    if not quiet:
        for note in notes(plan.study.axes, plan.study.overrides):
            print(note, flush=True)
        (show_recipes if plan.study.stages else show)(plan, folder)
        if replaced and not settings["join"]:
            print(in_words(folder, replaced), flush=True)
        print(f"{len(plan.jobs)} runs in {folder}", flush=True)
    if plan.study.parts_file and (file := parts_file()):
        # `resume` takes this copy if the file is changed or gone by then.
        write_text(make_folder(folder) / COPY, file.text)
    plan.study.files = kept_files.keep(plan.study.overrides, folder)
    with LiveTable(Console(quiet=quiet)) as board:
        engine = Engine(
            folder, plan.jobs, launcher,
            more=plan.more, study=plan.study, replaced=replaced, join=settings["join"], retry=settings["retry"],
            hang=settings[HANG], watcher=board,
        )  # fmt: skip
        with _discard_unstarted(folder):
            results = engine.run()
    for number in engine.ledger.damaged:
        print(f"ablatio: line {number} of {folder / LEDGER} is damaged and was left out", file=sys.stderr)
    if not quiet:
        show_results(results, plan.study.stages, folder) if plan.study.stages else show_table(results, folder)
        print(f"ablatio report {shell_word(folder)}  says what can be concluded from them", flush=True)
    failed = [r for r in results if r.entry.state == "failed"]
    if failed:
        waiting = len(engine.jobs) - len(results)
        raise SweepFailed(
            f"{len(failed)} of {len(engine.jobs)} runs failed"
            + (f", and {waiting} that depend on them were not started" if waiting else "")
            + f"; each one's error is in its folder in {folder / 'runs'}\n"
            f"    try: {shlex.join(['ablatio', 'resume', str(folder), 'retry=failed', *parts_words()])}"
        )
    return 0


@contextmanager
def _discard_unstarted(folder: Path) -> Iterator[None]:
    """Remove a new study folder if an error leaves it without a single run: the same command makes it again."""
    is_new = not folder.exists()
    try:
        yield
    # Interrupted and not failed: `resume` continues it, even if no run has begun.
    except Preempted:
        raise
    except AblatioError:
        if is_new and folder.is_dir() and not any((folder / RUNS).glob("*/*")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # fails, as it should, if it holds anything else
        raise


def show_table(results: Sequence[Result], folder: Path) -> None:
    """Print the runs, best score first and failed ones last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    scored = [score for result in results if (score := score_of(result.summary))]
    columns = {name: UNITS.get(name, name) for name in dict.fromkeys(score.name for score in scored)}
    if "val/loss" in columns:
        columns = {"val/bpb": UNITS["val/bpb"], **columns}
    table = Table(title=f"{len(results)} runs in {escape(str(folder))}", title_justify="left", box=None, pad_edge=False)
    for column in ("arm", *columns.values(), "parameters", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
    console = Console()
    # About 11 columns for each score, and 22 for parameters and seconds; the rest is for titles.
    titles = _titles(results, console.width - 11 * len(columns) - 22)
    for result in sorted(results, key=lambda result: cost_of(result.summary)):
        title = escape(titles[result.job.id])
        if result.entry.state == "failed":
            table.add_row(title, f"failed ({result.entry.kind})")
        else:
            table.add_row(title, *_numbers(result.summary, list(columns)))
    console.print(table)


def _titles(results: Sequence[Result], room: int) -> dict[str, str]:
    """Title of each job; with the short names of the arms, as in the report, if the whole ones do not fit."""
    jobs = [result.job for result in results]
    titles = {job.id: job.title for job in jobs}
    if max(map(len, titles.values()), default=0) <= room:
        return titles
    names = short_names([*{job.label: job.arm for job in jobs}.values()])
    return {job.id: job.title.replace(job.label, names[job.label], 1) for job in jobs}


def _numbers(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    formats = {**dict.fromkeys(names, ".4f"), "parameters": ",", "seconds": ".0f"}
    return [format(summary[k], how) if summary.get(k) is not None else "" for k, how in formats.items()]
