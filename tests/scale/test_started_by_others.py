"""Ranks that torchrun or srun starts, and several machines: the losses of the run that one command starts."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.gangs import TINY, command, environment, finished, rows

from ablatio.errors import UserError
from ablatio.training.rank_environment import from_environment, join_slurm_step, master_address, master_port

DDP = ("strategy=ddp", "train.steps=4")
STEP = {
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "100123", "SLURM_STEP_ID": "0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user, whose variables a test may set; what a rank's place adds to it is removed again."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *STEP):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def together(*started: tuple[Sequence[str], dict[str, str]], seconds: float = 600) -> list[tuple[int, str]]:
    """Exit codes and outputs of commands that run at the same time, each with its environment."""
    processes = [
        subprocess.Popen(
            words, env={**environment(), **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for words, more in started
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def same_as_one_device(folder: Path) -> None:
    done = finished(*TINY, "train.steps=4", f"out={folder.parent}", "name=one")
    assert done.returncode == 0, done.stderr
    one, many = rows(folder.parent / "one"), rows(folder)
    assert len(many) == len(one) > 4
    for row, expected in zip(many, one, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
def test_torchrun(tmp_path: Path) -> None:
    torchrun = Path(sys.executable).parent / "torchrun"
    words = [*TINY, *DDP, "trainer.devices=2", f"out={tmp_path}", "name=run"]
    ((code, output),) = together(
        ([str(torchrun), "--standalone", "--nproc-per-node", "2", "-m", "ablatio", "train", *words], {})
    )
    assert code == 0, output
    same_as_one_device(tmp_path / "run")


@pytest.mark.long
def test_tasks_of_a_slurm_step_are_ranks(tmp_path: Path) -> None:
    """srun --ntasks 2 --ntasks-per-node 2 ablatio train trainer.devices=2"""
    words = command(*TINY, *DDP, "trainer.devices=2", f"out={tmp_path}", "name=run")
    step = {
        **STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid()),
    }  # fmt: skip
    ends = together(*((words, {**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)))
    assert [code for code, _ in ends] == [0, 0], ends
    same_as_one_device(tmp_path / "run")


@pytest.mark.long
def test_two_machines(tmp_path: Path) -> None:
    """Two supervisors, as on two machines that share a disk; then the same with Slurm's variables."""
    port = str(free_port())
    words = command(*TINY, *DDP, "trainer.nodes=2", f"out={tmp_path}", "name=run")
    ends = together(
        *((words, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}) for node in range(2))
    )
    assert [code for code, _ in ends] == [0, 0], ends
    same_as_one_device(tmp_path / "run")
    step = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_ID": str(os.getpid())}
    step |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    words = command(*TINY, *DDP, "trainer.nodes=2", f"out={tmp_path}", "name=by-slurm")
    ends = together(
        *((words, {**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0", "SLURM_NODEID": str(i)}) for i in range(2))
    )
    assert [code for code, _ in ends] == [0, 0], ends
    assert rows(tmp_path / "by-slurm") == rows(tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("wrong", ["port", "address"])
def test_machine_that_does_not_reach_the_first(wrong: str, tmp_path: Path) -> None:
    """Both sides end by their time-out, and each names the rank that it misses."""
    words = command(*TINY, *DDP, "trainer.nodes=2", "trainer.timeout=10", f"out={tmp_path}", "name=run")
    right = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    lost = right | ({"MASTER_PORT": str(free_port())} if wrong == "port" else {"MASTER_ADDR": "no-such-host.invalid"})
    (first, said), (second, other) = together((words, right), (words, lost | {"NODE_RANK": "1"}))
    assert first == second == 5, (said, other)
    assert "rank 1 of 2 did not come" in said and "rank 1 cannot reach rank 0" in other, (said, other)
    assert "Traceback" not in said + other


def test_place_in_a_slurm_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tasks on three machines: this is the second on the second machine."""
    _set(monkeypatch, STEP)
    join_slurm_step({"devices": 5, "nodes": 1})
    place = from_environment()
    assert place is not None
    assert (place.rank, place.world, place.local, place.local_world) == (3, 5, 1, 2)
    assert (place.address, place.port) == ("gpu07", 15000 + 100123 % 15000)


def test_tasks_that_are_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task for each machine starts its ranks itself; runs of one device are independent; torchrun goes first."""
    for trainer, more in (
        ({"devices": 2, "nodes": 3}, {"SLURM_STEP_TASKS_PER_NODE": "1(x3)"}),
        ({"devices": 1, "nodes": 1}, {}),
    ):
        _set(monkeypatch, STEP | more)
        join_slurm_step(trainer)
        assert from_environment() is None
    _set(monkeypatch, STEP | {"RANK": "0", "WORLD_SIZE": "2"})
    join_slurm_step({"devices": 2, "nodes": 1})
    assert from_environment().world == 2  # type: ignore[union-attr]


def test_step_with_another_number_of_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, STEP | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"})
    with pytest.raises(UserError, match=r"4 tasks(.|\n)*3 devices(.|\n)*try: trainer.devices=2 trainer.nodes=2"):
        join_slurm_step({"devices": 3, "nodes": 1})


def test_master_of_a_user_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"})
    assert (master_address(), master_port()) == ("head", 4000)


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
