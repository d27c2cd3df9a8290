"""How long the runs of a recipe take: each stage of one arm is begun, in a folder that is gone afterwards.

What a step of a stage costs follows from no shape: a policy answers before it learns, a preference asks its reference.
So the very runs are started, one after the other as the recipe has them, and stopped after a second of training.
"""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablatio.errors import AblatioError
from ablatio.registry.kinds import Launcher, launchers
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.storage.atomic_write import make_folder
from ablatio.sweep.study import JOBS, RUNS, Job, placed, read_job, run_folder, run_of, summary_of, write_job
from ablatio.sweep.worker import LOG, log_into, stoppable, train_job, warm
from ablatio.training.run_spec import RunSpec

TRAINED = 1.0  # seconds of training that a stage is tried
PATIENCE = 30.0  # seconds for all stages: what the user waits for the estimate
TICK = 0.05
METRICS = "metrics.csv"  # its second line is the score before the first step


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a run's way to its first step, of each step, and of each score after the first; FLOPs of a step."""

    start: float
    step: float
    score: float
    flops: float

    def of(self, config: Mapping[str, Any], flops: float) -> float:
        """Seconds of a run with this config; one with other FLOPs takes more or less in proportion."""
        train = config["train"]
        steps, every = int(train["steps"]), train["val_every"]
        scores = 1 + (steps - 1) // every if every else 1
        scale = flops / self.flops if flops and self.flops else 1.0
        return self.start + scale * (steps * self.step + scores * self.score)


@dataclass(frozen=True, slots=True)
class Times:
    """seconds: of a run, by the id of its job; untold: the first stage that was too slow or failed, of which and of
    whose followers nothing is known."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    untold: str = ""


def times(jobs: Sequence[Job], line: Sequence[Job], study: Path | None, patience: float = PATIENCE) -> Times:
    """Of each job, from runs of this study that are done, or from a rehearsal of `line`, the stages of one arm."""
    with tempfile.TemporaryDirectory(prefix="ablatio-") as name:
        folder = Path(name)
        paces = _from_done(jobs, study)
        if any(job.stage not in paces for job in line):
            paces = rehearse(line, folder, patience) | paces
        tried = {job.stage: str(run_folder(folder, job.id)) for job in line}
        stages = {job.id: job.stage for job in jobs}

        def seconds(job: Job) -> float:
            places = {run_of(other): tried[stages[other]] for other in job.takes}
            return paces[job.stage].of(job.config, _flops(placed(job.config, places)))

        found = {job.id: seconds(job) for job in jobs if job.stage in paces}
    return Times(found, next((job.stage for job in line if job.stage not in paces), ""))


def _from_done(jobs: Iterable[Job], study: Path | None) -> dict[str, Pace]:
    found: dict[str, Pace] = {}
    for job in jobs if study else ():
        summary = summary_of(run_folder(study, job.id)) if study and job.stage not in found else {}
        if summary.get("status") == "done":
            found[job.stage] = Pace(0.0, summary["seconds"] / summary["steps"], 0.0, _flops(job.config))
    return found


def _flops(config: Mapping[str, Any]) -> float:
    """Of a step; 0 where its tokenizer is that of a run which is not there."""
    with suppress(AblatioError):
        return RunSpec(config).train_flops / int(config["train"]["steps"])
    return 0.0


def rehearse(line: Sequence[Job], folder: Path, patience: float = PATIENCE) -> dict[str, Pace]:
    """The pace of each stage of `line`, a job behind those that it takes something from; ends with one that fails."""
    for name in (RUNS, JOBS):
        make_folder(folder / name)
    deadline, found = time.monotonic() + patience, dict[str, Pace]()
    pool = launchers.build(str(launchers.usual), {"workers": 1}, work=begin)
    pool.start()
    try:
        pool.poll(patience)  # until the server is ready
        for job in line:
            write_job(folder, replace(job, config=_unhurried(job.config)))
            began = time.monotonic()
            _run(pool, folder, job, deadline)
            whole, summary = time.monotonic() - began, summary_of(run_folder(folder, job.id))
            steps, trained = int(summary.get("steps", 0)), float(summary.get("train_seconds", 0.0))
            if not steps or summary["status"] not in ("done", "preempted"):
                break
            places = {run_of(other): str(run_folder(folder, other)) for other in job.takes}
            score = max(0.0, float(summary["seconds"]) - trained)
            found[job.stage] = Pace(whole - trained, trained / steps, score, _flops(placed(job.config, places)))
    finally:
        pool.stop()
    return found


def _unhurried(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without scores and checkpoints on the way, each is done once and counted; and told to no logger."""
    return {**config, "train": {**config["train"], "val_every": None, "checkpoint_every": None}, "logger": {}}


def _run(pool: Launcher, folder: Path, job: Job, deadline: float) -> None:
    """Submit a job, ask it to stop when it has trained for a while, and wait for its end."""
    pool.submit(LaunchRequest(str(folder), job.id, 1, 0))
    path, trains, asked = run_folder(folder, job.id) / METRICS, 0.0, False
    while True:
        if pool.poll(TICK):
            return
        now = time.monotonic()
        trains = trains or (now if _rows(path) > 1 else 0.0)
        if not asked and (now > deadline or (trains and now - trains > TRAINED)):
            asked = True
            pool.cancel(job.id)


def _rows(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def begin(order: LaunchRequest, threads: int) -> int:
    """The work of the pool: a run that stands in no ledger."""
    stoppable()
    folder = Path(order.folder)
    run = make_folder(run_folder(folder, order.job))
    log_into(run / LOG)
    try:
        train_job(read_job(folder, order.job), run, threads)
    except AblatioError as error:
        return error.exit_code
    return 0


begin.warm = warm  # type: ignore[attr-defined]
