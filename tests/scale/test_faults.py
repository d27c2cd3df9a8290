"""All ranks of a run end together: with the exit code of the cause, within 30 seconds, and no process is left."""

import os
import signal
from pathlib import Path

import pytest
from helpers.gangs import TINY, TWO, Running, finished

from ablatio.storage.checkpoints import Checkpoints

POLICY = ("task=policy", "alignment=grpo", "reward=length", "task.prompt_tokens=4", "task.answer_tokens=24")
pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_stop_signal_saves_a_checkpoint(tmp_path: Path) -> None:
    """SIGTERM to the supervisor: every rank stops after the same step, rank 0 saves."""
    run = Running(tmp_path / "run")
    run.signal(signal.SIGTERM)
    code, output = run.ended()
    assert code == 75, output
    assert Checkpoints(tmp_path / "run" / "checkpoints").load().step > 0
    assert "Traceback" not in output


def test_stop_signal_to_one_rank(tmp_path: Path) -> None:
    run = Running(tmp_path / "run")
    os.kill(run.pids[1], signal.SIGTERM)
    code, output = run.ended()
    assert code == 75, output


@pytest.mark.matrix
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank(tmp_path: Path, rank: int) -> None:
    run = Running(tmp_path / "run")
    os.kill(run.pids[rank], signal.SIGKILL)
    code, output = run.ended()
    assert code == 5 and f"rank {rank} was ended by SIGKILL" in output, output
    assert "Traceback" not in output


@pytest.mark.long
def test_killed_supervisor_leaves_no_rank(tmp_path: Path) -> None:
    run = Running(tmp_path / "run")
    run.signal(signal.SIGKILL)
    run.ended()


@pytest.mark.long
def test_rank_that_hangs_is_named(tmp_path: Path) -> None:
    run = Running(tmp_path / "run", "trainer.timeout=4")
    os.kill(run.pids[1], signal.SIGSTOP)
    code, output = run.ended()
    assert code == 5 and "lost rank 1" in output, output


@pytest.mark.long
def test_stop_signal_between_rollouts(tmp_path: Path) -> None:
    """Each step samples first; the ranks agree at its end, and save with the rollout."""
    run = Running(tmp_path / "run", *POLICY)
    os.kill(run.pids[1], signal.SIGTERM)
    code, output = run.ended()
    assert code == 75, output
    assert Checkpoints(tmp_path / "run" / "checkpoints").load().step > 0


@pytest.mark.long
def test_rank_lost_in_a_rollout(tmp_path: Path) -> None:
    """Rank 0 waits for the answers of rank 1 no longer than the time-out."""
    run = Running(tmp_path / "run", *POLICY, "trainer.timeout=4")
    os.kill(run.pids[1], signal.SIGSTOP)
    code, output = run.ended()
    assert code == 5 and "lost rank 1" in output, output


def test_divergence_ends_all_ranks(tmp_path: Path) -> None:
    done = finished(*TINY, *TWO, "optimizer=sgd", "optimizer.lr=1e30", "stabilizer=[]", "train.steps=20",
                    "schedule.warmup=0", f"out={tmp_path}", "name=run")  # fmt: skip
    assert done.returncode == 4 and "diverged" in done.stderr, done.stderr
