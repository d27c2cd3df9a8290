"""Estimate the run times of a recipe: run each stage of one arm briefly, in a temporary folder.

The cost of a step cannot be computed from shapes: a policy samples answers before it trains, a preference method
evaluates its reference.  So the stages are run in the order of the recipe, each stopped after a second of training.
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
from ablatio.sweep.worker import LOG, log_into, stoppable, train_job, warm, with_parts
from ablatio.training.run_spec import RunSpec

TRAINED = 1.0  # seconds of training per stage
PATIENCE = 30.0  # seconds for all stages: how long the user waits for the estimate
TICK = 0.05  # seconds between two looks at a running stage
METRICS = "metrics.csv"  # its second line, the score before training, appears when training begins


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured speed of a stage.

    start  seconds before the first step
    step   seconds per step
    score  seconds per validation after the first
    flops  FLOPs per step; 0 if unknown
    """

    start: float
    step: float
    score: float
    flops: float

    def of(self, config: Mapping[str, Any], flops: float) -> float:
        """Estimate the seconds of a run with this config; steps and scores scale with its FLOPs per step, `flops`."""
        train = config["train"]
        steps, every = int(train["steps"]), train["val_every"]
        scores = 1 + (steps - 1) // every if every else 1
        scale = flops / self.flops if flops and self.flops else 1.0
        return self.start + scale * (steps * self.step + scores * self.score)


@dataclass(frozen=True, slots=True)
class Times:
    """Estimated run times.

    seconds  {job id: seconds}
    untold   first stage that was too slow or failed; it and the stages after it have no estimate.  Empty: none
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    untold: str = ""


def times(jobs: Sequence[Job], line: Sequence[Job], study: Path | None, patience: float = PATIENCE) -> Times:
    """Estimate the seconds of each job from finished runs of this study, or else from a rehearsal.

    line   the stages of one arm, in order, which a rehearsal runs
    study  folder of the study; None: a new one
    """
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
    """Speed of each stage that has a finished run."""
    found: dict[str, Pace] = {}
    for job in jobs if study else ():
        summary = summary_of(run_folder(study, job.id)) if study and job.stage not in found else {}
        if summary.get("status") == "done":
            found[job.stage] = Pace(0.0, summary["seconds"] / summary["steps"], 0.0, _flops(job.config))
    return found


def _flops(config: Mapping[str, Any]) -> float:
    """FLOPs per step; 0 if the config needs the tokenizer of a run that does not exist yet."""
    with suppress(AblatioError):
        return RunSpec(config).train_flops / int(config["train"]["steps"])
    return 0.0


def rehearse(line: Sequence[Job], folder: Path, patience: float = PATIENCE) -> dict[str, Pace]:
    """Measure the speed of each stage in `line`, whose jobs stand after those that they depend on.

    Ends early at a stage that fails or exceeds `patience` seconds in all.
    """
    for name in (RUNS, JOBS):
        make_folder(folder / name)
    deadline, found = time.monotonic() + patience, dict[str, Pace]()
    pool = launchers.build(str(launchers.usual), {"workers": 1}, work=with_parts(begin))
    pool.start()
    try:
        pool.poll(patience)  # waits until the pool is ready, so that its start is not counted
        for job in line:
            write_job(folder, replace(job, config=_bare(job.config)))
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


def _bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config without validations and checkpoints during training, so that each happens once, and without loggers."""
    return {
        **config,
        "train": {**config["train"], "val_every": None, "checkpoint_every": None},
        "logger": {},
        "eval": {},
        "metric": {},
    }


def _run(pool: Launcher, folder: Path, job: Job, deadline: float) -> None:
    """Submit a job, ask it to stop after TRAINED seconds of training or at the deadline, and wait for its end."""
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
    """Number of lines of a file; 0 if it cannot be read."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def begin(order: LaunchRequest, threads: int) -> int:
    """Work function of the pool: train a job without an entry in a ledger; returns the exit code."""
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
