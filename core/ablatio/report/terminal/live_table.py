"""Progress of a running sweep: a live table in a terminal, plain lines elsewhere."""

import csv
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from ablatio.sweep.durations import duration
from ablatio.sweep.engine import Engine
from ablatio.sweep.ledger import Entry, State
from ablatio.sweep.score import score_of
from ablatio.sweep.study import Job, run_folder

REFRESH_SECONDS = 0.5
SHOWN = 20  # running jobs listed at most
BAR = 30  # characters
END = {
    "decided": "every comparison is decided: no more seeds",
    "last look": "this was the last planned look: what is open stays open",
    "budget": "the budget does not pay for the next look: what is open stays open",
}


class RunningJob(NamedTuple):
    """Progress of a run."""

    step: int
    loss: str


class LiveTable:
    """Watcher of an engine: prints a line for each finished job and redraws the running ones."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.known: dict[str, Entry] = {}
        self.next = 0.0
        self.looks: int | None = None  # looks of a sequential study that were printed
        self.start: tuple[float, int] | None = None  # (time, steps done) when progress was first seen

    def __enter__(self) -> "LiveTable":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def update(self, engine: Engine) -> None:
        """Print what changed and redraw, at most every REFRESH_SECONDS."""
        self._say_changes(engine)
        self._say_looks(engine)
        now = time.monotonic()
        if self.live and now >= self.next:
            self.next = now + REFRESH_SECONDS
            self.live.update(self._drawn(engine), refresh=True)

    def _say_changes(self, engine: Engine) -> None:
        """Print one line for each job that has ended since the last call."""
        # Jobs that were done before this process began are counted, and not announced.
        first = not self.known
        for name, entry in engine.ledger.entries.items():
            if self.known.get(name) == entry or name not in engine.jobs:
                continue
            self.known[name] = entry
            if not first and entry.state in ("done", "failed", "paused"):
                ended = sum(e.state in ("done", "failed") for e in self.known.values())  # up to this one
                title = escape(engine.jobs[name].title)
                self.console.print(
                    f"[{ended}/{len(engine.jobs)}]".replace("[", "\\[") + f" {title}: {_said(engine, entry)}",
                    highlight=False,
                    soft_wrap=True,
                )

    def _say_looks(self, engine: Engine) -> None:
        """Print one line for each look that a sequential study has made since the last call."""
        record = engine.study.sequential if engine.study else {}
        looks = record.get("looks", [])
        for number in range(len(looks) if self.looks is None else self.looks, len(looks)):
            states = ", ".join(
                f"{label}: {one['state']} (n = {one['n']})" for label, one in looks[number]["comparisons"].items()
            )
            planned = len(record["boundaries"]["sizes"])
            self.console.print(escape(f"look {number + 1} of {planned}: {states}"), highlight=False, soft_wrap=True)
        if len(looks) > (self.looks or 0) and record.get("end"):
            self.console.print(END[record["end"]], highlight=False, soft_wrap=True)
        self.looks = len(looks)

    def _drawn(self, engine: Engine) -> Group:
        entries = engine.ledger.entries
        running = {n: at(run_folder(engine.folder, n)) for n, e in entries.items() if e.state == "running"}
        table = Table(box=None, pad_edge=False)
        for column in ("running", "step", "loss"):
            table.add_column(column, justify="left" if column == "running" else "right")
        for name, place in list(running.items())[:SHOWN]:
            if name in engine.jobs:
                job = engine.jobs[name]
                table.add_row(escape(job.title), f"{place.step}/{_steps(job)}", place.loss)
        done, total = self._progress(engine, running)
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=max(1, total), completed=done, width=BAR), _counted(engine) + self._left(done, total)
        )
        return Group(table, line) if running else Group(line)

    def _progress(self, engine: Engine, running: dict[str, RunningJob]) -> tuple[int, int]:
        """(finished steps, steps of all jobs)."""
        done = total = 0
        for job in engine.jobs.values():
            entry, steps = engine.ledger.entries.get(job.id), _steps(job)
            total += steps
            if entry and entry.state in ("done", "failed"):
                done += steps
            elif job.id in running:
                done += min(steps, running[job.id].step)
        return done, total

    def _left(self, done: int, total: int) -> str:
        now = time.monotonic()
        if self.start is None:
            self.start = (now, done)
        since, before = self.start
        # No step since the start: a rate of 0 would promise forever.
        if done == before:
            return ""
        return f", {duration((total - done) * (now - since) / (done - before), 2)} left"


def at(run: Path) -> RunningJob:
    """Progress of a run from the last row of its metrics that has a loss."""
    for row in _rows_backwards(run / "metrics.csv"):
        if row.get("train/loss"):
            return RunningJob(int(row["step"]), f"{float(row['train/loss']):.3f}")
    return RunningJob(0, "")


def _rows_backwards(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a metrics file, newest first; an unfinished last line is skipped."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        header = file.readline().decode().strip().split(",")
        # The last rows alone: the file of a long run is read twice a second.
        file.seek(max(file.tell(), path.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for values in csv.reader(reversed(whole)):
            if len(values) == len(header):
                yield dict(zip(header, values, strict=True))


def _counted(engine: Engine) -> str:
    """Number of jobs per state; `starting` and `failed` are omitted when zero."""
    entries = engine.ledger.entries
    names: dict[State, str] = {"done": "done", "running": "running", "claimed": "starting", "failed": "failed"}
    states = Counter(e.state for e in entries.values())
    parts = [f"{states[s]} {name}" for s, name in names.items() if states[s] or s in ("done", "running")]
    waiting = sum(engine.is_open(job, entries.get(job.id)) for job in engine.jobs.values())
    return ", ".join([*parts, f"{waiting} to come"])


def _said(engine: Engine, entry: Entry) -> str:
    if entry.state == "failed":
        return f"[red]failed[/] ({entry.kind}): {escape(entry.message)}"
    result = engine.result(entry.job)
    score = score_of(result.summary) if result else None
    at_step = f" at step {entry.step}" if entry.state == "paused" else ""
    return f"{entry.state}{at_step}" + (f", {score}" if score else "")


def _steps(job: Job) -> int:
    return job.until or int(job.config["train"]["steps"])
