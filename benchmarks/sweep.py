"""Eight tiny runs on two cores: under our pool, as fresh processes, under Hydra's launchers, under Ray.

    python benchmarks/sweep.py [--rounds 3] [--steps 20]    how many times as fast ours is, and its CPU beside training
    python benchmarks/sweep.py --efficiency [--seconds 30]  training time / (wall time x workers) of longer runs

Each contender is one command, timed from its start to its end.  They take turns (A B C A B C ...); a ratio is the
median over the turns of theirs / ours.  What all share is made before: the corpus, its tokens, the index of parts.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.sweep import worker

RUNS, WORKERS = 8, 2
HERE = Path(__file__).parent
TINY = "size=tiny train.val_every=null train.checkpoint_every=null data.val_tokens=1024 trainer.progress=false"
LEAST_EFFICIENCY, MOST_CPU = 0.93, 0.1

Contender = Callable[[Path, str], None]  # (an empty folder, settings): comes back when all runs are done


def call(*words: str | Path, threads: int = 1) -> subprocess.Popen[bytes]:
    here = os.environ | {"OMP_NUM_THREADS": str(threads), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    here.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    return subprocess.Popen([sys.executable, *words], env=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args} ended with code {process.returncode}:\n{said.decode()[-2000:]}")


def seeds() -> str:
    return f"seed={','.join(map(str, range(1, RUNS + 1)))}"


def ours(folder: Path, settings: str) -> None:
    words = ["train", "-m", *settings.split(), seeds(), f"workers={WORKERS}", "table=0", f"out={folder}", "name=study"]
    finish(call("-m", "ablatio.cli", *words))


def fresh(folder: Path, settings: str) -> None:
    """A process for each run, `WORKERS` at a time."""
    waiting, going = list(range(1, RUNS + 1)), list[subprocess.Popen[bytes]]()
    while waiting or going:
        while waiting and len(going) < WORKERS:
            seed = waiting.pop(0)
            place = [f"seed={seed}", f"out={folder}", f"name=run{seed}"]
            going.append(call("-m", "ablatio.cli", "train", *settings.split(), "trainer.threads=1", *place))
        for process in [p for p in going if p.poll() is not None]:
            finish(process)
            going.remove(process)
        time.sleep(0.005)


def joblib(folder: Path, settings: str) -> None:
    launcher = ["-m", f"+{seeds()}", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"]
    finish(call(HERE / "sweep_peers.py", "hydra", folder, f"{settings} trainer.threads=1", *launcher))


def basic(folder: Path, settings: str) -> None:
    """One process that does the runs one after the other, with as many threads as the others have workers."""
    threads = f"{settings} trainer.threads={WORKERS}"
    finish(call(HERE / "sweep_peers.py", "hydra", folder, threads, "-m", f"+{seeds()}", threads=WORKERS))


def ray(folder: Path, settings: str) -> None:
    finish(call(HERE / "sweep_peers.py", "ray", folder, f"{settings} trainer.threads=1", str(RUNS), str(WORKERS)))


# name -> (the command, how many times as fast ours shall be, the package that it needs)
PEERS: dict[str, tuple[Contender, float, str]] = {
    "fresh processes, two at a time": (fresh, 3.0, "ablatio"),
    "Hydra's joblib launcher": (joblib, 1.25, "hydra_plugins.hydra_joblib_launcher"),
    "Hydra's basic launcher, two threads": (basic, 1.4, "hydra"),
    "Ray": (ray, 1.4, "ray"),
}


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def timed(contender: Contender, settings: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        contender(Path(folder), settings)
        return time.perf_counter() - start


def summaries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/summary.json")]


def throughput(settings: str, rounds: int) -> bool:
    """Print how ours stands against each peer; whether all goals are reached."""
    peers = {name: peer for name, peer in PEERS.items() if installed(peer[2])}
    for name in PEERS.keys() - peers:
        print(f"{name}: left out, {PEERS[name][2]} is not installed")
    mine, theirs = list[float](), {name: list[float]() for name in peers}
    for _ in range(rounds):
        mine.append(timed(ours, settings))
        for name, (contender, _, _) in peers.items():
            theirs[name].append(timed(contender, settings))
    print(f"{'ablatio train -m':<36} {statistics.median(mine):6.1f} s   {RUNS} runs, {WORKERS} workers, {rounds} turns")
    well = True
    for name, (_, goal, _) in peers.items():
        ratio = statistics.median(b / a for a, b in zip(mine, theirs[name], strict=True))
        well &= ratio >= goal
        print(f"{name:<36} {statistics.median(theirs[name]):6.1f} s   ours is {ratio:.2f}x as fast (goal {goal:g})")
    return well


def counted_work(order: LaunchRequest, threads: int) -> int:
    """A run that leaves behind what CPU it took since its fork: in all, in a step, and in scoring held-out text."""
    import lightning.pytorch as pl

    from ablatio.training import loop
    from ablatio.training.prepare import PreparedRun

    starts, scoring = list[float](), list[float]()
    make, score = loop.make_trainer, PreparedRun.score

    class Clock(pl.Callback):
        def on_train_batch_start(self, *given: Any) -> None:
            starts.append(time.process_time())

    def scored(*given: Any) -> dict[str, float]:
        start = time.process_time()
        found = score(*given)
        scoring.append(time.process_time() - start)
        return found

    loop.make_trainer = lambda callbacks, **others: make(callbacks=[*callbacks, Clock()], **others)
    PreparedRun.score = scored  # type: ignore[method-assign]
    code = worker.work(order, threads)
    step = statistics.median(b - a for a, b in pairwise(starts))
    found = {"all": time.process_time(), "step": step, "steps": len(starts), "scoring": sum(scoring)}
    (Path(order.folder) / "runs" / order.job / "cpu.json").write_text(json.dumps(found))
    return code


counted_work.warm = worker.warm  # type: ignore[attr-defined]


def beside_training(steps: int) -> bool:
    """Print the CPU seconds of a run that are not training; whether they are few enough.

    All that its process took since its fork, less its middle step times their number.  Each run has a step of its own:
    the speed of a shared machine changes by a third within minutes.
    """
    runs = cpu_seconds(steps)
    beside = statistics.median(run["all"] - run["steps"] * run["step"] for run in runs)
    whole, scoring = (statistics.median(run[what] for run in runs) for what in ("all", "scoring"))
    print(
        f"CPU of a run: {whole:.3f} s, of a step {1e3 * statistics.median(run['step'] for run in runs):.1f} ms; "
        f"beside {steps} steps {beside:.3f} s (at most {MOST_CPU:g}), of which {scoring:.3f} score held-out text"
    )
    return beside <= MOST_CPU


def cpu_seconds(steps: int) -> list[dict[str, float]]:
    """What each run of a study left behind."""
    from ablatio.registry.kinds import launchers
    from ablatio.report.terminal.plan_table import estimate_arms
    from ablatio.sweep.engine import Engine
    from ablatio.sweep.plan import plan_sweep

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = plan_sweep([*TINY.split(), f"train.steps={steps}", seeds(), "table=0"])
        estimate_arms(plan.cells, {})  # sizes for the table before the first run, which the runs inherit
        Engine(folder, plan.jobs, launchers.build("pool", {"workers": WORKERS}, work=counted_work)).run()
        return [json.loads((folder / "runs" / job.id / "cpu.json").read_text()) for job in plan.jobs]


def efficiency(settings: str, steps: int, seconds: float) -> bool:
    """Print which share of the workers' time was training, in runs of about `seconds`; whether it is enough."""
    with tempfile.TemporaryDirectory() as name:
        ours(Path(name, "probe"), f"{settings} train.steps={steps}")
        probe = statistics.median(s["train_seconds"] for s in summaries(Path(name, "probe", "study")))
        longer = max(steps, round(steps * seconds / probe))
        start = time.perf_counter()
        ours(Path(name, "long"), f"{settings} train.steps={longer}")
        wall = time.perf_counter() - start
        each = [s["train_seconds"] for s in summaries(Path(name, "long", "study"))]
    share = sum(each) / (wall * WORKERS)
    print(f"{RUNS} runs of {longer} steps, {statistics.mean(each):.1f} s each, on {WORKERS} workers: {wall:.1f} s")
    print(f"training / (wall x workers): {share:.3f} (goal {LEAST_EFFICIENCY:g})")
    return share >= LEAST_EFFICIENCY


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=20, help="of each run; with --efficiency, of the probe")
    options.add_argument("--efficiency", action="store_true")
    options.add_argument("--seconds", type=float, default=30.0, help="that a run takes with --efficiency")
    asked = options.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    os.environ["OMP_NUM_THREADS"] = "1"
    if asked.efficiency:
        return 1 - efficiency(TINY, asked.steps, asked.seconds)
    settings = f"{TINY} train.steps={asked.steps}"
    few = beside_training(asked.steps)  # which also makes what all contenders share
    return 0 if throughput(settings, asked.rounds) and few else 1


if __name__ == "__main__":
    sys.exit(main())
