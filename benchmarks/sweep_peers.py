"""The runs of `sweep.py`, which starts this file, under Hydra's launchers or under Ray.

python benchmarks/sweep_peers.py hydra FOLDER 'SETTINGS' -m +seed=1,2 hydra/launcher=joblib    a Hydra application
python benchmarks/sweep_peers.py ray FOLDER 'SETTINGS' RUNS WORKERS                            tasks of Ray
"""

import sys
from pathlib import Path
from typing import Any


def train_once(folder: str, settings: str, seed: int) -> None:
    """Execute a run of `ablatio train` in this process."""
    from rich.console import Console

    from ablatio.config.compose import compose_run
    from ablatio.training.run import train
    from ablatio.training.run_folder import resolved
    from ablatio.training.run_spec import RunSpec

    run = Path(folder, str(seed))
    run.mkdir(parents=True)
    public = compose_run([*settings.split(), f"seed={seed}"]).public
    train(RunSpec(resolved(public, folder), public), run, Console(quiet=True))


def with_hydra(folder: str, settings: str) -> None:
    """Run a Hydra application on the remaining command line."""
    import hydra

    @hydra.main(config_path=None, version_base="1.3")
    def application(config: Any) -> None:
        train_once(folder, settings, config.seed)

    sys.argv += [f"hydra.sweep.dir={folder}/hydra", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    application()


def with_ray(folder: str, settings: str, runs: str, workers: str) -> None:
    """Execute the runs as tasks of Ray on this machine."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=int(workers), **quiet)
    task = ray.remote(num_cpus=1)(train_once)
    ray.get([task.remote(folder, settings, seed) for seed in range(1, int(runs) + 1)])
    ray.shutdown()


if __name__ == "__main__":
    _, peer, *arguments = sys.argv
    if peer == "ray":
        with_ray(*arguments)
    else:
        sys.argv = [sys.argv[0], *arguments[2:]]
        with_hydra(arguments[0], arguments[1])
