"""Sweeps of runs that use several devices: each launcher places them, and they give the results of one device."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.doc_pages import blocks
from helpers.gangs import TINY, children

from ablatio.api.multirun import multirun
from ablatio.errors import UserError
from ablatio.sweep.ledger import Entry, Ledger

ARMS = ("norm=rmsnorm,layernorm", "position=rope,alibi", "seed=1")
SETTINGS = (*TINY, "train.steps=6", "data.val_fraction=0.2", "table=0")
ON_TWO = ("strategy=ddp", "trainer.devices=2")
PATIENCE = 600.0  # seconds, on a machine with other work
LOCAL = ("launcher=slurm", "launcher.cluster=local")


def sweep(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(folder, *words), capture_output=True, text=True, timeout=PATIENCE, env=_environment()
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep that runs inside the context."""
    process = subprocess.Popen(
        _command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def _command(folder: Path, *words: str) -> list[str]:
    where = (f"out={folder.parent}", f"name={folder.name}")
    return [sys.executable, "-m", "ablatio", "train", "-m", *SETTINGS, *words, *where]


def _environment() -> dict[str, str]:
    """Without OMP_NUM_THREADS: launchers bound the threads themselves."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def losses(study: Path) -> dict[str, float]:
    """Held-out loss of each run by job id, which the strategy is no part of."""
    return {p.parent.name: json.loads(p.read_text())["val/loss"] for p in study.glob("runs/*/summary.json")}


def entries(study: Path) -> dict[str, Entry]:
    return Ledger(study / "ledger.jsonl").read()


def same_as_one_device(study: Path, tmp_path: Path, *words: str) -> None:
    """All runs are done at the first attempt, with a thread for each rank and the losses of one device."""
    sweep(tmp_path / "one", *words)
    assert {(e.state, e.attempt) for e in entries(study).values()} == {("done", 1)}
    assert losses(study) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    for manifest in study.glob("runs/*/manifest.json"):
        assert json.loads(manifest.read_text())["machine"]["threads"] == 1


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray cluster of two nodes with two CPUs each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    yield made
    made.shutdown()


@pytest.mark.long
def test_pool(tmp_path: Path) -> None:
    sweep(tmp_path / "two", *ON_TWO, "seed=1", "workers=2")
    same_as_one_device(tmp_path / "two", tmp_path, "seed=1", "workers=2")


@pytest.mark.long
def test_four_arms_in_a_pool(tmp_path: Path) -> None:
    """Three places: one run of two devices after the other."""
    sweep(tmp_path / "two", *ARMS, *ON_TWO, "workers=3")
    same_as_one_device(tmp_path / "two", tmp_path, *ARMS, "workers=2")
    assert not _overlapping(tmp_path / "two")


def test_several_machines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"on one machine(.|\n)*try: trainer.nodes=1 trainer.devices=4"):
        multirun(["seed=1,2", f"out={tmp_path}", "strategy=ddp", "trainer.nodes=2", "trainer.devices=2", "table=0"])
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_four_arms_on_two_ray_nodes(cluster: Any, tmp_path: Path) -> None:
    """Each node has two cores, so two runs of two devices are executed at a time, one on each node."""
    study = tmp_path / "two"
    sweep(study, *ARMS, *ON_TWO, "launcher=ray", f"launcher.address={cluster.address}")
    same_as_one_device(study, tmp_path, *ARMS)
    assert _overlapping(study)


@pytest.mark.long
def test_run_that_fits_no_ray_node_is_refused(cluster: Any, tmp_path: Path) -> None:
    """Four cores, but two on a node: Ray would wait forever."""
    said = sweep(
        tmp_path / "four", "seed=1", "norm=rmsnorm,layernorm", "strategy=ddp", "trainer.devices=4", "launcher=ray",
        f"launcher.address={cluster.address}", code=2,
    ).stderr  # fmt: skip
    assert "no node of the cluster has them" in said and "try: trainer.devices=2" in said


@pytest.mark.long
def test_four_arms_under_submitit(tmp_path: Path) -> None:
    sweep(tmp_path / "two", *ARMS, *ON_TWO, *LOCAL, "launcher.workers=2")
    same_as_one_device(tmp_path / "two", tmp_path, *ARMS)
    assert not _overlapping(tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("launcher", [("workers=2",), LOCAL], ids=["pool", "submitit"])
def test_killed_run_continues_from_its_checkpoint(launcher: tuple[str, ...], tmp_path: Path) -> None:
    """kill -9 of the process that watches the ranks: they end too, and the next attempt goes on where they were."""
    study = tmp_path / "two"
    words = ("norm=rmsnorm,layernorm", "seed=1", "train.steps=60", "train.checkpoint_every=2")
    with started(study, *words, *ON_TWO, *launcher) as process:
        job = _wait_for(lambda: next((p.parents[1].name for p in study.glob("runs/*/checkpoints/step-*4.json")), None))
        supervisor = entries(study)[job].pid
        ranks = children(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    assert len(ranks) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert {e.state for e in entries(study).values()} == {"done"} and entries(study)[job].attempt == 2
    sweep(tmp_path / "one", *words)
    assert losses(study) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)  # 60 steps enlarge the rounding


@pytest.mark.long
def test_hung_rank_is_found(tmp_path: Path) -> None:
    study = tmp_path / "two"
    words = ("norm=rmsnorm,layernorm", "seed=1", "train.steps=400", "hang=20", "workers=2")
    with started(study, *words, *ON_TWO) as process:
        job = _wait_for(lambda: next((p.parent.name for p in study.glob("runs/*/metrics.csv")), None))
        ranks = children(entries(study)[job].pid)
        os.kill(ranks[1], signal.SIGSTOP)
        output = process.communicate(timeout=PATIENCE)[0]
    found = entries(study)
    assert process.returncode == 3, output
    assert found[job].kind == "hung" and {e.state for name, e in found.items() if name != job} == {"done"}
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.long
def test_ray_command_of_the_page_works_as_typed(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster that runs already, as after `ray start --head`, which address=auto finds."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    _as_typed("launcher=ray ", tmp_path)


@pytest.mark.long
def test_slurm_command_of_the_page_works_as_typed(tmp_path: Path) -> None:
    _as_typed("launcher=slurm launcher.cluster=local", tmp_path)


def _as_typed(words: str, folder: Path) -> None:
    """Run the command of docs/howto/cluster.md that has these words, with small runs."""
    lines = (line for block in blocks("howto/cluster.md") for line in block.body.splitlines())
    (typed,) = {line for line in lines if words in line and line.startswith("ablatio train -m ")}
    settings = typed.removeprefix("ablatio train -m ").split()
    study = folder / settings[-1].removeprefix("name=")
    sweep(study, *settings)
    assert {e.state for e in entries(study).values()} == {"done"} and len(entries(study)) == 6


def _overlapping(study: Path) -> bool:
    """True if two runs were executed at the same time, by the ledger."""
    rows = [json.loads(line) for line in (study / "ledger.jsonl").read_text().splitlines()]
    changes = sorted((row["time"], {"running": 1, "done": -1}.get(row["state"], 0)) for row in rows)
    running = [sum(change for _, change in changes[: i + 1]) for i in range(len(changes))]
    return max(running) > 1


def _wait_for(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while (found := look()) is None and time.monotonic() < end:
        time.sleep(0.05)
    assert found is not None
    return found
