"""Executes the jobs of a study: claims a job, hands it to the launcher, records how it ended.

A job that depends on others (a stage of a recipe) is claimed when those are done.  A job that depends on a failed one
stays planned, and opens again once that one has been repeated (`retry=`).
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, get_args

from ablatio.errors import EnvironmentFault, Preempted, UserError
from ablatio.registry.kinds import Launcher
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest
from ablatio.storage.atomic_write import make_folder
from ablatio.storage.paths import shell_word
from ablatio.storage.process import stop_signals
from ablatio.sweep.hang_detector import HangDetector
from ablatio.sweep.ledger import Claim, Entry, Ledger, Retry, alive
from ablatio.sweep.lock import owned
from ablatio.sweep.study import JOBS, LEDGER, RUNS, Job, Study, read_job, run_folder, summary_of, write_job

TICK = 0.25  # seconds between polls
LIVES = 3  # attempts for a run that is killed or lost with its server
GRACE = 25.0  # seconds that a run may outlive its server
PATIENCE = 30.0  # seconds to wait for the owner of a folder to write its plan
RETRY = get_args(Retry)
ENDED = ("done", "failed", "paused")


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of a job; `summary` of its run, empty if it failed."""

    job: Job
    entry: Entry
    summary: Mapping[str, Any] = field(default_factory=dict)


def _devices(job: Job) -> int:
    return int(job.config.get("trainer", {}).get("devices", 1))


def _failure(result: Result) -> Mapping[str, Any] | None:
    """Result of a run without a summary: its status if it diverged, None if it failed otherwise."""
    return {"status": "diverged"} if result.entry.kind == "diverged" else None


# Function from results (job id -> summary, None if failed) to the next jobs.
More = Callable[[Any], Iterable[Job]]


class Watcher(Protocol):
    """Observer that the engine updates a few times per second."""

    def update(self, engine: "Engine") -> None:
        """Look at the engine's state."""


class Engine:
    """Runs the open jobs of `jobs`, and those that `more` adds when it sees results.

    more      called with all results whenever there is a new one; returns new jobs, or known ones with a later `until`
    study     written before the first run
    replaced  jobs of this folder that others have superseded
    join      share the work with a sweep that owns this folder, instead of refusing
    retry     kinds of failures to repeat: `failed` for all; `running` for runs on machines that cannot be queried
    hang      seconds after which a run that writes nothing is stopped
    """

    def __init__(
        self,
        folder: Path,
        jobs: Iterable[Job],
        launcher: Launcher,
        *,
        more: More = lambda results: (),
        study: Study | None = None,
        replaced: Sequence[str] = (),
        join: bool = False,
        retry: str | None = None,
        hang: float | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        if retry and retry not in RETRY:
            raise UserError(f"retry={retry} came; expected one of {', '.join(RETRY)}\n    try: retry=failed")
        self.folder, self.launcher, self.more, self.watcher = folder, launcher, more, watcher
        self.study, self.replaced, self.join = study, replaced, join
        self.jobs = {job.id: job for job in jobs}
        self.ledger = Ledger(folder / LEDGER)
        self.held: dict[str, Claim] = {}
        self.lost: dict[str, tuple[Claim, float]] = {}
        self.deaths: Counter[str] = Counter()
        self.hang_detector, self.hung = HangDetector(hang), set[Claim]()
        self.retry = retry
        self.again = {e.job for e in self.ledger.read().values() if e.state == "failed" and retry in ("failed", e.kind)}
        self.stopped, self.started = "", False
        self._results: dict[str, Result] = {}

    def run(self) -> list[Result]:
        """Run to the end and return all results in order.  Raises Preempted on a signal, without losing work."""
        with owned(self.folder, self.join) as owner, self._listening():
            if owner:
                if self.study:
                    self.study.write(self.folder)
                self._write(self.jobs.values())
                self.ledger.replace(self.replaced)
            else:
                self.more = lambda results: ()  # only the owner extends the plan
                self._refuse_another_plan()
            try:
                self._loop()
            finally:
                if self.started:
                    self.launcher.stop()
                self._release()
        if self.stopped:
            raise Preempted(
                f"{self.stopped} came; what ran has a checkpoint\n    try: ablatio resume {shell_word(self.folder)}",
            )
        return self.results()

    def results(self) -> list[Result]:
        """Results of the finished jobs, in the order of the study."""
        return [result for job in self.jobs if (result := self.result(job))]

    def result(self, name: str) -> Result | None:
        """Result of a job; None while it is not finished."""
        job, entry = self.jobs[name], self.ledger.entries.get(name)
        if entry is None or entry.state not in ENDED:
            return None
        known = self._results.get(name)
        if known is None or known.entry != entry or known.job != job:
            summary = {} if entry.state == "failed" else summary_of(run_folder(self.folder, name))
            known = self._results[name] = Result(job, entry, summary)
        return known

    def _known(self) -> Iterator[tuple[Job, Entry | None]]:
        entries = self.ledger.entries
        return ((job, entries.get(job.id)) for job in self.jobs.values())

    def _loop(self) -> None:
        seen = -1
        while not self.stopped:
            self.ledger.read()
            self._end_orphans()
            self._stop_hung_runs()
            self._look_for_new()
            self._fill()
            if self.watcher:
                self.watcher.update(self)
            changed = sum(e.attempt for e in self.ledger.entries.values() if e.state in ENDED)
            if changed != seen:
                seen = changed
                if self._extend():
                    continue
            if not self.held and not self.lost and not any(self._unfinished(e) for e in self.ledger.entries.values()):
                break
            if not self.started:  # other processes hold all open jobs
                time.sleep(TICK)
                continue
            for end in self.launcher.poll(TICK):
                self._settle(end)
        if self.watcher:  # the last results may have made a look
            self.watcher.update(self)

    def _unfinished(self, entry: Entry) -> bool:
        job = self.jobs.get(entry.job)
        return job is not None and (entry.taken or self.is_open(job, entry))

    def _write(self, jobs: Iterable[Job]) -> None:
        for name in (RUNS, JOBS):
            make_folder(self.folder / name)
        for job in list(jobs):
            self.jobs[job.id] = job
            if self._on_disk(job.id) != job:
                write_job(self.folder, job)
        self.ledger.plan(self.jobs)

    def _refuse_another_plan(self) -> None:
        """The owner writes down what is to be done; what it has not planned has no settings on the disk."""
        deadline = time.monotonic() + PATIENCE
        while not self.ledger.read() and not self.stopped and time.monotonic() < deadline:
            time.sleep(TICK)
        if self.stopped:
            return
        if unknown := [name for name in self.jobs if name not in self.ledger.entries]:
            raise UserError(
                f"{len(unknown)} of {len(self.jobs)} runs are not among those that the sweep in {self.folder} has "
                f"planned: it has other settings or seeds, or its code is another version\n    try: ablatio report "
                f"{self.folder}, and the same command when it is over"
            )

    def _look_for_new(self) -> None:
        """Jobs that another sweeper of this folder has planned."""
        for name, entry in self.ledger.entries.items():
            if name not in self.jobs and entry.state != "replaced" and (job := self._on_disk(name)):
                self.jobs[name] = job

    def _on_disk(self, job: str) -> Job | None:
        try:
            return read_job(self.folder, job)
        except FileNotFoundError:
            return None

    def _extend(self) -> bool:
        """Ask for further jobs; True if there are any."""
        before = deepcopy(self.study)
        jobs = list(self.more({r.job.id: r.summary or _failure(r) for r in self.results()}))
        if self.study and self.study != before:  # it records tuned settings and looks: before the runs that follow
            self.study.write(self.folder)
        if jobs:
            self._write(jobs)
        return bool(jobs)

    def is_open(self, job: Job, entry: Entry | None) -> bool:
        """True if the job should be claimed now."""
        if job.id in self.held or job.id in self.lost or not self._is_ready(job):
            return False
        if entry is None or entry.state in ("planned", "preempted"):
            return True
        if entry.state == "paused":
            return job.until is None or job.until > entry.step
        if entry.state == "failed":
            return job.id in self.again
        if entry.state == "done":
            return False
        return not entry.taken or (self.retry == "running" and entry.elsewhere)

    def _is_ready(self, job: Job) -> bool:
        """True if all jobs that it depends on are done."""
        return all((known := self.ledger.entries.get(name)) and known.state == "done" for name in job.takes)

    def _fill(self) -> None:
        """Claim open jobs, in order, while the launcher has a place for each of their devices."""
        taken = sum(_devices(self.jobs[name]) for name in (*self.held, *self.lost))
        for job, entry in list(self._known()):
            if taken >= self.launcher.slots:
                return
            if not self.is_open(job, entry):
                continue
            devices = _devices(job)
            if taken and taken + devices > self.launcher.slots:  # one that needs more than there are runs alone
                return
            if claim := self.ledger.claim(job.id, entry):
                taken += devices
                if not self.started:
                    self.started = True
                    self.launcher.start()
                self.again.discard(job.id)
                self.held[job.id] = claim
                where = str(self.folder.absolute())  # cluster nodes have another working directory
                together = min(max(1, self.launcher.slots // devices), len(self.jobs))
                on_cpu = job.config.get("trainer", {}).get("device") == "cpu"
                self.launcher.submit(
                    LaunchRequest(where, job.id, claim.attempt, claim.offset, devices, together, on_cpu)
                )

    def _settle(self, end: LaunchOutcome) -> None:
        """Record the end of a process that could not record it itself."""
        claim = self.held.pop(end.order.job, None)
        if claim is None or claim.attempt != end.order.attempt:
            return
        entry = self.ledger.read()[claim.job]
        if entry.attempt != claim.attempt or entry.state in ENDED:
            return
        if end.how == "timeout":
            self.ledger.end(claim, "failed", "timeout", "it ran longer than timeout= allows")
        elif claim in self.hung and end.how != "lost":
            self.ledger.end(claim, "failed", "hung", f"it wrote nothing for {self.hang_detector.seconds:g} s (hang=)")
        elif end.how == "lost":
            self.lost[claim.job] = claim, time.monotonic() + GRACE
        elif entry.state == "preempted":
            return
        elif end.how == "signal":
            self._died(claim, "killed", f"killed by {signal.Signals(end.code).name}")
        elif end.code == EnvironmentFault.exit_code:
            self.ledger.end(
                claim, "failed", "environment", f"it could not write into {run_folder(self.folder, claim.job)}"
            )
        else:
            self.ledger.end(claim, "failed", "exited", f"it exited with code {end.code} and no result")

    def _died(self, claim: Claim, kind: Any, message: str) -> None:
        self.deaths[claim.job] += 1
        state = "failed" if self.deaths[claim.job] >= LIVES else "preempted"
        self.ledger.end(claim, state, kind, message)  # type: ignore[arg-type]

    def _stop_hung_runs(self) -> None:
        """Ask hung runs to stop; the launcher kills those that do not react."""
        for job, claim in self.held.items():
            running = self.ledger.entries[job].state == "running"
            if running and claim not in self.hung and self.hang_detector.gone(claim, run_folder(self.folder, job)):
                self.hung.add(claim)
                self.launcher.cancel(job)

    def _end_orphans(self) -> None:
        """Wait for runs whose server died, which were asked to stop, then kill them."""
        for job, (claim, deadline) in list(self.lost.items()):
            entry = self.ledger.entries[job]
            ours = entry.attempt == claim.attempt and entry.state not in ENDED
            if ours and entry.state == "running" and alive(entry) is not False:
                if time.monotonic() < deadline:
                    continue
                if alive(entry):
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(entry.pid, signal.SIGKILL)
            del self.lost[job]
            if ours:
                self._died(claim, "lost", "its server process died")

    def _release(self) -> None:
        """Return claims of jobs that have not started."""
        for claim in (*self.held.values(), *(claim for claim, _ in self.lost.values())):
            entry = self.ledger.read()[claim.job]
            if entry.state == "claimed" and entry.attempt == claim.attempt:
                self.ledger.end(claim, "preempted", message="it had not started")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Let the stop signals end the sweep in order; a second Ctrl-C ends it at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopped and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped = signal.Signals(number).name

        main = threading.current_thread() is threading.main_thread()  # only there may signals be taken
        old = {number: signal.signal(number, stop) for number in stop_signals() if main}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
