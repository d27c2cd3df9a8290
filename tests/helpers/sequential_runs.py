"""Runs a planned sweep through the real engine; its runs only write a loss: `python sequential_runs.py OVERRIDE...`

PLANTED={"rmsnorm": -0.3}  nats that an arm's value adds to its loss; "diverge" and "crash" are outcomes
KILL_AFTER=2               SIGKILL of the sweeper when this many looks are made: `before` or `after` they are on disk
"""

import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio import launchers
from ablatio.errors import Diverged
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.storage.atomic_write import write_json
from ablatio.sweep.engine import Engine
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.study import Job, Study
from ablatio.sweep.worker import work


def loss(job: Job) -> float | str:
    """Loss of a run: a shift per seed, noise of its own, and what is planted for its arm."""
    planted = json.loads(os.environ.get("PLANTED", "{}"))
    found = [planted[v] for v in job.arm.values() if v in planted]
    if found and isinstance(found[0], str):
        return str(found[0])
    noise = random.Random(f"{job.label} {job.seed} {job.config['optimizer']['lr']}").gauss(0, 0.02)
    return 3.0 + random.Random(job.seed).gauss(0, 0.1) + noise + sum(found)


def fake_run(job: Job, folder: Path, threads: int) -> Mapping[str, Any]:
    value = loss(job)
    if value == "diverge" and job.seed > 2:
        raise Diverged("the loss is nan\n    try: less")
    if value == "crash" and job.seed > 2:
        raise ValueError("broken")
    score = 3.0 if isinstance(value, str) else value
    summary = {"status": "done", "steps": job.config["train"]["steps"], "val/loss": score, "seconds": 1.0}
    write_json(folder / "summary.json", summary)
    return summary


def fake_work(order: LaunchRequest, threads: int) -> int:
    return work(order, threads, fake_run)


fake_work.warm = lambda: None  # type: ignore[attr-defined]


def run(overrides: list[str]) -> Study:
    """Plan and run; the study as it is on disk at the end."""
    plan = plan_sweep(overrides)
    plan.study.overrides = overrides
    folder = Path(plan.config["out"]) / plan.config["name"]
    when, _, number = os.environ.get("KILL_AFTER", "").partition(" ")

    def more(results: Any) -> list[Job]:
        if when == "after" and len(plan.study.sequential["looks"]) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        jobs = plan.more(results)
        if when == "before" and len(plan.study.sequential["looks"]) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return jobs

    pool = launchers.build("pool", {"workers": 2}, work=fake_work)
    Engine(folder, plan.jobs, pool, more=more, study=plan.study).run()
    return Study.read(folder)


if __name__ == "__main__":
    run(sys.argv[1:])
