"""One run of a study in its own process: its job, its folder, its end in the ledger."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ablatio.errors import AblatioError, Diverged, EnvironmentFault, Preempted
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.registry.parts_file import PartsFile
from ablatio.registry.parts_file import current as parts_file
from ablatio.registry.parts_file import load as load_parts
from ablatio.storage.atomic_write import make_folder, write_text
from ablatio.storage.process import Stopped, stop_signals
from ablatio.storage.streams import SafeStream
from ablatio.sweep.ledger import Claim, Kind, Ledger, State, digests_of
from ablatio.sweep.study import LEDGER, Job, placed, read_job, run_folder, run_of, summary_of

LOG, ERROR = "log.txt", "error.txt"
RunJob = Callable[[Job, Path, int], Mapping[str, Any]]  # (job, its folder, threads) -> its summary


def train_job(job: Job, folder: Path, threads: int) -> Mapping[str, Any]:
    """Train the run of a job, continuing from its checkpoint if there is one."""
    from rich.console import Console

    from ablatio.training.run import train
    from ablatio.training.run_folder import resolved
    from ablatio.training.run_spec import RunSpec

    known = summary_of(folder)
    if known.get("status") == "done":  # killed after its summary and before its ledger entry
        return known
    here = {"progress": False, "threads": job.config["trainer"]["threads"] or threads}
    study = folder.parent.parent
    taken = {run_of(other): str(run_folder(study, other)) for other in job.takes}
    public = {**placed(job.config, taken), "trainer": {**job.config["trainer"], **here}}
    spec = RunSpec(resolved(public, str(folder)), public)
    return train(spec, folder, Console(), resume=True, until=job.until)


def work(order: LaunchRequest, threads: int, run_job: RunJob = train_job) -> int:
    """Execute a request and record its end in the ledger; returns the exit code of `ablatio train`.

    A run that cannot record its end (full disk) exits with a code that says so, and the sweeper records it.
    """
    stoppable()
    try:
        return _work(order, threads, run_job)
    except (OSError, EnvironmentFault) as error:
        print(error, file=sys.stderr)
        return EnvironmentFault.exit_code


def _work(order: LaunchRequest, threads: int, run_job: RunJob) -> int:
    folder = Path(order.folder)
    claim, ledger = Claim(order.job, order.attempt, order.offset), Ledger(folder / LEDGER)
    if not ledger.begin(claim):
        return 0
    run = make_folder(run_folder(folder, order.job))
    log_into(run / LOG)
    try:
        summary = run_job(read_job(folder, order.job), run, threads)
    except BaseException as error:  # a part may raise anything, SystemExit included
        kind, code = _kind(error)
        message = str(error) if isinstance(error, AblatioError | Stopped) else f"{type(error).__name__}: {error}"
        if kind:
            write_text(run / ERROR, message if isinstance(error, AblatioError) else traceback.format_exc())
        print(message if kind != "crash" else traceback.format_exc(), file=sys.stderr)
        ledger.end(claim, "failed" if kind else "preempted", kind, message.splitlines()[0] if message else "")
        return code
    (run / ERROR).unlink(missing_ok=True)  # from an earlier attempt
    state: State = "paused" if summary["status"] == "paused" else "done"
    ledger.end(claim, state, step=int(summary["steps"]), files=digests_of(run))
    return 0


def warm() -> None:
    """Do once what each run would repeat: imports of libraries and parts, versions and hashes of the code."""
    from ablatio.registry.discovery import load
    from ablatio.registry.registry import REGISTRIES
    from ablatio.training import provenance
    from ablatio.training.lightning_trainer import fit_nothing
    from ablatio.training.run import quiet_libraries

    quiet_libraries()
    fit_nothing()
    load()
    provenance.versions()
    provenance.code({})
    for registry in REGISTRIES.values():
        for name in list(registry.entries) if registry.in_run else ():  # imports may register more parts
            with suppress(Exception):  # the run that uses a broken part reports it
                registry.target(name)


work.warm = warm  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class WorkWithParts:
    """Work function of runs that use a file of parts: the processes that execute them are handed its text and load it.

    Nothing in a study's folder can name code, so the text comes from the process in which the user named the file.
    """

    work: Any
    file: PartsFile

    def __call__(self, order: LaunchRequest, threads: int) -> int:
        """Execute a request."""
        load_parts(self.file)
        return int(self.work(order, threads))

    def warm(self) -> None:
        """Load the parts, and do once what each run would repeat."""
        load_parts(self.file)
        self.work.warm()


def with_parts(work: Any) -> Any:
    """The work function, with the file of parts that was named in this process, if there is one."""
    file = parts_file()
    return WorkWithParts(work, file) if file else work


def _kind(error: BaseException) -> tuple[Kind, int]:
    """(kind of failure, exit code); the kind is empty if the run was asked to stop."""
    if isinstance(error, Preempted | KeyboardInterrupt):
        return "", Preempted.exit_code
    if isinstance(error, Diverged):
        return "diverged", Diverged.exit_code
    if isinstance(error, OSError | MemoryError | EnvironmentFault):
        return "environment", EnvironmentFault.exit_code
    if isinstance(error, SystemExit):
        return "exited", 1
    return ("user", error.exit_code) if isinstance(error, AblatioError) else ("crash", 1)


def stoppable() -> None:
    """Handle the stop signals until training installs its own handlers."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"{signal.Signals(number).name} came before the first step")

    for number in stop_signals():
        signal.signal(number, stop)


def log_into(path: Path) -> None:
    """Redirect all output of this process, also from native code, into a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, name, SafeStream(file))
