"""Time of a sweep of eight tiny runs on two cores: our pool, fresh processes, Hydra's launchers, Ray.

    python benchmarks/sweep.py [--rounds 3] [--steps 20]    speed of ours relative to each peer, and its CPU overhead
    python benchmarks/sweep.py --efficiency [--seconds 30]  training time / (wall time x workers) of longer runs

Each contender is one command, timed from its start to its end.  They take turns (A B C A B C ...); a ratio is the
median over the turns of theirs / ours.  What all share is prepared first: corpus, its tokens, catalogue of parts.
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

Contender = Callable[[Path, str], None]  # (an empty folder, settings): returns when all runs have ended


def call(*words: str | Path, threads: int = 1) -> subprocess.Popen[bytes]:
    """Start Python with these arguments."""
    here = os.environ | {"OMP_NUM_THREADS": str(threads), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    here.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are then compiled once, as in an installed package
    return subprocess.Popen([sys.executable, *words], env=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process; exit with its error output if it fails."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args} ended with code {process.returncode}:\n{errors.decode()[-2000:]}")


def seeds() -> str:
    """Override for RUNS seeds."""
    return f"seed={','.join(map(str, range(1, RUNS + 1)))}"


def ours(folder: Path, settings: str) -> None:
    """`ablatio train -m` with the pool."""
    words = ["train", "-m", *settings.split(), seeds(), f"workers={WORKERS}", "table=0", f"out={folder}", "name=study"]
    finish(call("-m", "ablatio.cli", *words))


def fresh(folder: Path, settings: str) -> None:
    """A new process for each run, `WORKERS` at a time."""
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
    """Hydra's joblib launcher with `WORKERS` jobs."""
    launcher = ["-m", f"+{seeds()}", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"]
    finish(call(HERE / "sweep_peers.py", "hydra", folder, f"{settings} trainer.threads=1", *launcher))


def basic(folder: Path, settings: str) -> None:
    """Hydra's basic launcher: one process executes the runs one after the other, with `WORKERS` threads."""
    threads = f"{settings} trainer.threads={WORKERS}"
    finish(call(HERE / "sweep_peers.py", "hydra", folder, threads, "-m", f"+{seeds()}", threads=WORKERS))


def ray(folder: Path, settings: str) -> None:
    """Tasks of Ray on `WORKERS` cores."""
    finish(call(HERE / "sweep_peers.py", "ray", folder, f"{settings} trainer.threads=1", str(RUNS), str(WORKERS)))


# name -> (contender, goal for the ratio theirs / ours, package that it needs)
PEERS: dict[str, tuple[Contender, float, str]] = {
    "fresh processes, two at a time": (fresh, 3.0, "ablatio"),
    "Hydra's joblib launcher": (joblib, 1.25, "hydra_plugins.hydra_joblib_launcher"),
    "Hydra's basic launcher, two threads": (basic, 1.4, "hydra"),
    "Ray": (ray, 1.4, "ray"),
}


def installed(package: str) -> bool:
    """True if the package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def timed(contender: Contender, settings: str) -> float:
    """Wall-clock seconds of a contender."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        contender(Path(folder), settings)
        return time.perf_counter() - start


def summaries(folder: Path) -> list[dict[str, float]]:
    """Read the summaries of the runs of a study."""
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/summary.json")]


def throughput(settings: str, rounds: int) -> bool:
    """Measure and print the ratio to each peer; return True if all goals are reached."""
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
    """Execute a run and write cpu.json: its CPU seconds since the fork in total, of a step, and of validation."""
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
    """Print the CPU seconds of a run outside of training steps; return True if they are at most MOST_CPU.

    They are the CPU time of the process since its fork, minus the run's median step times the number of steps.  Each
    run's own median is used, since the speed of a shared machine changes by a third within minutes.
    """
    runs = cpu_seconds(steps)
    beside = statistics.median(run["all"] - run["steps"] * run["step"] for run in runs)
    whole, scoring = (statistics.median(run[what] for run in runs) for what in ("all", "scoring"))
    print(
        f"CPU of a run: {whole:.3f} s, of a step {1e3 * statistics.median(run['step'] for run in runs):.1f} ms; "
        f"outside of {steps} steps {beside:.3f} s (at most {MOST_CPU:g}), of which {scoring:.3f} for validation"
    )
    return beside <= MOST_CPU


def cpu_seconds(steps: int) -> list[dict[str, float]]:
    """Execute a study of RUNS runs, and return the figures of their cpu.json."""
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
    """Print the share of the workers' time that is training, in runs of about `seconds`; True if it is enough."""
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
    """Run the benchmark; return 0 if its goals are reached, else 1."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=20, help="steps of each run; with --efficiency, of the probe run")
    options.add_argument("--efficiency", action="store_true")
    options.add_argument("--seconds", type=float, default=30.0, help="duration of a run with --efficiency")
    args = options.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.efficiency:
        return 1 - efficiency(TINY, args.steps, args.seconds)
    settings = f"{TINY} train.steps={args.steps}"
    few = beside_training(args.steps)  # first, as it also prepares what all contenders share
    return 0 if throughput(settings, args.rounds) and few else 1


if __name__ == "__main__":
    sys.exit(main())
