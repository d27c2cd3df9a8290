"""Launcher `slurm` on a real Slurm cluster of one node, which the tests start; its runs are fakes."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import slurm_cluster
from helpers.fakes import Once, engine, homes_of_packages, job, states, stop_when, table
from helpers.slurm_cluster import SlurmCluster

from ablatio.errors import Preempted, UserError
from ablatio.sweep.ledger import Ledger
from ablatio_std.launchers import _slurm_queue

MISSING = slurm_cluster.is_missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
JOBS = [job(f"j{i}") for i in range(3)]
TROUBLE = [job("bad", "raise"), job("dead", "kill"), job("left", "exit")]
KNOBS = {"workers": 2, "time": 30, "memory": 0.5}


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(daemons: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The cluster, for the commands of this process, with the fakes and the packages on PYTHONPATH of its jobs."""
    monkeypatch.setenv("PYTHONPATH", homes_of_packages())
    monkeypatch.setenv("SLURM_CONF", str(daemons.config))
    monkeypatch.setattr(_slurm_queue, "INTERVAL", 0.3)
    return daemons


def test_results_are_those_of_the_pool(cluster: SlurmCluster, tmp_path: Path) -> None:
    """In a folder whose name has a space, without an accounting database."""
    engine(tmp_path / "pool", *JOBS, *TROUBLE).run()
    made = engine(tmp_path / "a study", *JOBS, *TROUBLE, launcher="slurm", knobs=KNOBS)
    kinds = {r.job.id: r.entry.kind for r in made.run()}
    assert states(made) == states(engine(tmp_path / "pool"))
    assert table(tmp_path / "a study") == table(tmp_path / "pool")
    assert [kinds[j.id] for j in TROUBLE] == ["crash", "killed", "exited"]


@pytest.mark.parametrize("how", ["--signal=USR2", "--signal=TERM", "--signal=KILL"])
def test_a_job_that_slurm_ends_is_submitted_again_and_resumes(cluster: SlurmCluster, tmp_path: Path, how: str) -> None:
    """USR2 comes before the time limit and TERM with preemption; KILL ends a job that had no time for its result."""
    slow = tmp_path / "runs/slow/once"
    watcher = Once(lambda made: slow.exists(), lambda: subprocess.run(["scancel", how, "--name=ablatio"], check=True))
    made = engine(tmp_path, job("slow", "once:slow"), launcher="slurm", knobs=KNOBS, watcher=watcher)
    assert [r.entry.state for r in made.run()] == ["done"]
    assert made.ledger.entries["slow"].attempt == 2
    assert "slow starts at step 2" in (tmp_path / "runs/slow/log.txt").read_text()


def test_a_job_that_was_cancelled_before_it_started_is_submitted_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Slurm forgets it, and no result ever comes."""

    def waits(made: Any) -> bool:
        queue = cluster.ask("squeue", "--noheader", "--array", "--format=%T").split()
        return sorted(queue) == ["PENDING", "RUNNING", "RUNNING"]

    cancel = Once(waits, lambda: subprocess.run(["scancel", "--state=PENDING", "--name=ablatio"], check=True))
    chats = [job(name, "chat") for name in "abc"]
    made = engine(tmp_path, *chats, launcher="slurm", knobs={**KNOBS, "workers": 3}, watcher=cancel)
    assert [r.entry.state for r in made.run()] == ["done"] * 3
    assert cancel.done
    assert [made.ledger.entries[name].attempt for name in "abc"] == [1, 1, 2]


def test_the_reason_why_a_job_waits_is_said(
    cluster: SlurmCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = stop_when(lambda made: "PartitionTimeLimit" in caplog.text)
    made = engine(tmp_path, *JOBS, launcher="slurm", knobs={**KNOBS, "time": 61}, watcher=said)
    with caplog.at_level(logging.WARNING), pytest.raises(Preempted):
        made.run()
    assert "Slurm does not start" in caplog.text
    assert "launcher.time is more than the partition allows" in caplog.text
    assert cluster.ask("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"partition": "nope"}, "refused the jobs: (.|\n)*nope(.|\n)*try: sinfo"),
        ({"gpus": 3}, "refused the jobs: (.|\n)*gres(.|\n)*try: sinfo"),
        ({"exclude": "no-such-node"}, "refused the jobs: (.|\n)*Invalid node name"),
    ],
)
def test_what_slurm_refuses_is_an_error_in_its_words(
    cluster: SlurmCluster, tmp_path: Path, knobs: dict[str, Any], words: str
) -> None:
    made = engine(tmp_path, JOBS[0], launcher="slurm", knobs={**KNOBS, **knobs})
    with pytest.raises(UserError, match=words):
        made.run()
    assert states(made) == {"j0": "preempted"}


@pytest.mark.long
def test_a_study_whose_sweeper_is_killed_is_resumed(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Running jobs go on without it.  Those that wait are submitted again; the earlier ones then do nothing."""
    ablatio_command = [sys.executable, "-m", "ablatio"]
    settings = ["norm=rmsnorm,layernorm", "seed=1,2", "size=tiny", "train.steps=100", f"out={tmp_path}", "name=study"]
    slurm = ["launcher=slurm", "launcher.memory=1", "launcher.time=30"]
    sweeper = subprocess.Popen([*ablatio_command, "train", "-m", *slurm, *settings], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while cluster.ask("squeue", "--noheader", "--array", "--format=%T").split().count("RUNNING") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    sweeper.kill()
    sweeper.wait()
    subprocess.run([*ablatio_command, "resume", str(tmp_path / "study")], check=True, stdout=subprocess.DEVNULL)
    entries = Ledger(tmp_path / "study/ledger.jsonl").read().values()
    assert sorted((entry.state, entry.attempt) for entry in entries) == [("done", 1)] * 2 + [("done", 2)] * 2


@pytest.mark.long
def test_tasks_are_the_ranks_of_a_run(cluster: SlurmCluster, tmp_path: Path) -> None:
    """`srun --ntasks 2`, two tasks on a machine, and one that starts its ranks: the numbers of one command without."""
    settings = ["strategy=ddp", "trainer.devices=2", "size=tiny", "train.steps=4", "data.val_tokens=512"]
    words = [sys.executable, "-m", "ablatio", "train", *settings, f"out={tmp_path}"]
    starters = {"alone": [], "tasks": ["-n2"], "per-node": ["--ntasks-per-node=2"], "one": ["-n1", "-c2"]}
    for name, options in starters.items():
        srun = ["srun", *options] if options else []
        subprocess.run([*srun, *words, f"name={name}"], check=True, stdout=subprocess.DEVNULL)
    found = {name: json.loads((tmp_path / name / "summary.json").read_text())["val/loss"] for name in starters}
    assert len(set(found.values())) == 1, found
