"""Sweeps with fake runs, which do not train: `do` in a job's config says what its run does."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ablatio
import ablatio_std
from ablatio import launchers
from ablatio.errors import Diverged
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.storage.atomic_write import write_json
from ablatio.sweep.engine import Engine
from ablatio.sweep.study import Job
from ablatio.sweep.worker import work

STEPS = 4


def job(name: str, do: str = "train", seed: int = 1, **more: Any) -> Job:
    return Job(name, {"do": do}, seed, (f"do={do}",), {"do": do, "train": {"steps": STEPS}}, **more)


def fake_run(job: Job, folder: Path, threads: int) -> Mapping[str, Any]:
    """Four steps with a checkpoint after each, from which a repeated run continues."""
    place = folder / "step"
    step = int(place.read_text()) if place.exists() else 0
    do = str(job.config["do"])
    print(f"{job.id} starts at step {step} in {os.getpid()}", flush=True)
    while step < (job.until or STEPS):
        if do.startswith("once:") and not (folder / "once").exists() and step == 2:
            (folder / "once").touch()
            trouble(do.removeprefix("once:"))
        elif step == 2 and not do.startswith("once:"):
            trouble(do)
        step += 1
        (folder / "step.new").write_text(str(step))
        (folder / "step.new").replace(place)  # whole also if the run is killed here
    status = "done" if step == STEPS else "paused"
    summary = {"status": status, "steps": step, "val/loss": float(sum(map(ord, job.id))) + step}
    write_json(folder / "summary.json", summary)
    return summary


def trouble(what: str) -> None:
    """Act out a failure in the middle of a run."""
    if what == "exit":
        os._exit(3)
    elif what == "sys.exit":
        sys.exit(0)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill server":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif what == "raise":
        raise ValueError("no such thing")
    elif what == "diverge":
        raise Diverged("the loss is nan\n    try: less")
    elif what == "disk":
        raise OSError(28, "No space left on device")
    elif what == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(600)
    elif what == "chat":
        for _ in range(30):
            print("still here", flush=True)
            time.sleep(0.1)
    elif what == "nap":
        time.sleep(0.1)
    elif what == "slow":
        time.sleep(600)
    elif what == "leak":
        if os.fork() == 0:
            time.sleep(600)
        sys.stdout.write("x" * 100_000)


def fake_work(order: LaunchRequest, threads: int) -> int:
    return work(order, threads, fake_run)


fake_work.warm = lambda: None  # type: ignore[attr-defined]


def engine(folder: Path, *jobs: Job, **options: Any) -> Engine:
    knobs = options.pop("knobs", {"workers": 2})
    launcher = launchers.build(options.pop("launcher", "pool"), knobs, work=fake_work)
    return Engine(folder, jobs, launcher, **options)


class Once:
    """Watcher of a sweep that does something once, as soon as a condition of the engine is true."""

    def __init__(self, condition: Callable[[Engine], bool], do: Callable[[], object]) -> None:
        self.condition, self.do, self.done = condition, do, False

    def update(self, made: Engine) -> None:
        if not self.done and self.condition(made):
            self.done = True
            self.do()


def stop_when(condition: Callable[[Engine], bool]) -> Once:
    """Watcher that sends SIGTERM to this process."""
    return Once(condition, lambda: os.kill(os.getpid(), signal.SIGTERM))


def homes_of_packages() -> str:
    """PYTHONPATH of processes that other programs start: the fakes and the packages."""
    homes = [Path(__file__).parents[1], *(Path(str(module.__file__)).parents[1] for module in (ablatio, ablatio_std))]
    return os.pathsep.join(map(str, homes))


def states(made: Engine) -> dict[str, str]:
    return {name: entry.state for name, entry in made.ledger.read().items()}


def table(folder: Path) -> dict[str, Any]:
    """Summaries of a sweep's runs by job id."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/summary.json"))}
