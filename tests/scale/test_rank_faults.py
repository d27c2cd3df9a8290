"""Faults of ranks x strategies: the exit code within 30 seconds, no process left, a valid checkpoint, a named rank.

`pytest tests/scale/test_rank_faults.py --select all --results tests/results/rank_faults.json` records what each gave.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.gangs import Running

from ablatio.storage.checkpoints import Checkpoints

pytestmark = [pytest.mark.faults, pytest.mark.long]

PARTS = Path(__file__).parents[1] / "helpers/faulty_norm.py"  # not imported here: `parts=` registers what it defines
MARK = "FAULT_MARK"
SECONDS = 30.0  # from the fault to the end of the command
STRATEGIES = ("ddp", "fsdp", "zero2", "zero3", "tensor", "context")
ENVIRONMENT, DIVERGED, PREEMPTED = 5, 4, 75


@dataclass(frozen=True)
class Fault:
    """A fault of one rank, by `faulty_norm`, and what the command says of it.

    says      a part of the message
    saved     True if checkpoints were written before it
    everywhere  True if it is tried with every strategy, else with ddp alone
    """

    what: str
    on: int
    at: str
    code: int
    says: str
    saved: bool = True
    everywhere: bool = False

    def __str__(self) -> str:
        return f"{self.what}-{self.at}-rank{self.on}"


def _kill(on: int, at: str, saved: bool = True, everywhere: bool = False) -> Fault:
    return Fault("kill", on, at, ENVIRONMENT, f"rank {on} was ended by SIGKILL", saved, everywhere)


FAULTS = (
    _kill(0, "start", saved=False),
    _kill(1, "start", saved=False),
    _kill(0, "train"),
    _kill(1, "train", everywhere=True),
    _kill(0, "validate"),
    _kill(1, "validate"),
    _kill(0, "save"),
    _kill(1, "save"),
    _kill(0, "write", everywhere=True),
    Fault("hang", 0, "train", ENVIRONMENT, "lost rank 0"),
    Fault("hang", 1, "train", ENVIRONMENT, "lost rank 1", everywhere=True),
    Fault("hang", 1, "save", ENVIRONMENT, "lost rank 1"),
    Fault("hang", 0, "validate", ENVIRONMENT, "lost rank 0"),
    Fault("nan_loss", 1, "train", DIVERGED, "first on rank 1", everywhere=True),
    Fault("nan_loss", 0, "train", DIVERGED, "first on rank 0"),
    Fault("nan_gradient", 1, "train", DIVERGED, "diverged", everywhere=True),
    Fault("user_error", 1, "train", 2, "rank 1: this rank has another file"),
    Fault("user_error", 0, "train", 2, "this rank has another file"),
    Fault("user_error", 1, "start", 2, "rank 1: this rank has another file", saved=False),
    Fault("memory", 1, "train", ENVIRONMENT, "rank 1: out of memory", everywhere=True),
    Fault("memory", 0, "train", ENVIRONMENT, "rank 0: out of memory"),
    Fault("bug", 1, "train", 1, "rank 1: ZeroDivisionError"),
    Fault("disk", 0, "train", ENVIRONMENT, "EFBIG", everywhere=True),
)
CASES = [
    pytest.param(fault, strategy, id=f"{fault}-{strategy}")
    for fault in FAULTS
    for strategy in (STRATEGIES if fault.everywhere else STRATEGIES[:1])
]
Record = Callable[[str, object], None]


@pytest.mark.parametrize(("fault", "strategy"), CASES)
def test_fault_of_one_rank(
    fault: Fault, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    mark = tmp_path / "mark"
    monkeypatch.setenv(MARK, str(mark))
    run = Running(
        tmp_path / "run", f"parts={PARTS}", "norm=faulty", "trainer.timeout=8",
        f"norm.fault={fault.what}", f"norm.on={fault.on}", f"norm.at={fault.at}", "train.checkpoint_every=2",
        "train.val_every=4", strategy=strategy,
    )  # fmt: skip
    code, output = run.ended(60)
    seconds = time.time() - (mark.stat().st_mtime if mark.exists() else 0.0)
    record_property("outcome", _outcome(code, seconds, output))
    # With `tensor` the ranks add up what they compute in every layer, so all of them have the NaN.
    says = "diverged" if fault.what == "nan_loss" and strategy == "tensor" else fault.says
    assert code == fault.code and says in output, output
    assert seconds < SECONDS
    assert "Traceback" not in output or fault.what == "bug"
    if fault.saved:
        assert _saved(tmp_path / "run") >= 2
    else:
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, "supervisor"),
        (signal.SIGINT, "supervisor"),
        (signal.SIGHUP, "supervisor"),
        (signal.SIGUSR1, "supervisor"),
        (signal.SIGTERM, 0),
        (signal.SIGUSR1, 1),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_stop_signal(number: signal.Signals, to: str | int, tmp_path: Path, record_property: Record) -> None:
    run = Running(tmp_path / "run")
    _stops(run, number, run.pid if isinstance(to, str) else run.pids[to], record_property)
    assert _saved(tmp_path / "run") >= 3


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_stop_signal_to_one_rank(strategy: str, tmp_path: Path, record_property: Record) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    run = Running(tmp_path / "run", strategy=strategy)
    _stops(run, signal.SIGTERM, run.pids[1], record_property)
    assert _saved(tmp_path / "run") >= 3


def test_second_sigterm(tmp_path: Path, record_property: Record) -> None:
    """It comes while the ranks stop, and changes nothing."""
    run = Running(tmp_path / "run")
    run.signal(signal.SIGTERM)
    time.sleep(0.02)
    _stops(run, signal.SIGTERM, run.pid, record_property)
    assert _saved(tmp_path / "run") >= 3


@pytest.mark.parametrize("rank", [0, 1])
def test_second_ctrl_c_ends_a_run_with_a_hung_rank(rank: int, tmp_path: Path, record_property: Record) -> None:
    """The other one waits for it, so nobody can save; as on one device the second Ctrl-C waits for nothing."""
    run = Running(tmp_path / "run", "train.checkpoint_every=2")
    os.kill(run.pids[rank], signal.SIGSTOP)
    run.signal(signal.SIGINT)
    time.sleep(1)
    began = time.time()
    run.signal(signal.SIGINT)
    code, output = run.ended(SECONDS)
    record_property("outcome", _outcome(code, time.time() - began, output))
    assert code == 130 and "Traceback" not in output, output
    assert _saved(tmp_path / "run") >= 2


@pytest.mark.parametrize("hung", [False, True])
def test_killed_supervisor(hung: bool, tmp_path: Path, record_property: Record) -> None:
    """No rank is left, not even one that is stopped and reads nothing."""
    run = Running(tmp_path / "run", "train.checkpoint_every=2")
    if hung:
        os.kill(run.pids[1], signal.SIGSTOP)
    began = time.time()
    run.signal(signal.SIGKILL)
    code, output = run.ended()
    record_property("outcome", _outcome(code, time.time() - began, output))
    assert code == -signal.SIGKILL
    assert _saved(tmp_path / "run") >= 2


def test_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        for name, value in (("ADDR", "127.0.0.1"), ("PORT", str(other.getsockname()[1]))):
            monkeypatch.setenv(f"MASTER_{name}", value)
        monkeypatch.setenv("NODE_RANK", "0")
        began = time.time()
        run = Running(tmp_path / "run", "trainer.devices=1", "trainer.nodes=2", "trainer.timeout=8")
        code, output = run.ended()
    record_property("outcome", _outcome(code, time.time() - began, output))
    assert code == ENVIRONMENT and "Traceback" not in output, output
    assert re.search(r"rank 0 cannot listen at 127.0.0.1:\d+: address already in use\s+try: MASTER_PORT=\d+", output), (
        output
    )


def _stops(run: Running, number: signal.Signals, pid: int, record_property: Record) -> None:
    began = time.time()
    os.kill(pid, number)
    code, output = run.ended(SECONDS)
    record_property("outcome", _outcome(code, time.time() - began, output))
    assert code == PREEMPTED and "the checkpoint is written" in output and "Traceback" not in output, output


def _saved(folder: Path) -> int:
    """Step of the newest checkpoint, which must be valid."""
    found = Checkpoints(folder / "checkpoints").load()
    assert all(bool(weight.isfinite().all()) for weight in found.model.values())
    return found.step


def _outcome(code: int, seconds: float, output: str) -> dict[str, object]:
    """What the command gave: its exit code, seconds from the fault, and the first line of its message."""
    lines = [line.removeprefix("ablatio: ") for line in output.splitlines() if line.startswith("ablatio: ")]
    message = re.sub(r"/\S*/run/", "RUN/", lines[-1]) if lines else ""
    return {"code": code, "seconds": round(seconds, 1), "message": message}
