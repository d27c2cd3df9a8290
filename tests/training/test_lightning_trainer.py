"""Lightning Trainer: only the config configures it, and a trial fit leaves the process safe to fork."""

import os
import signal
import threading
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest

from ablatio.training.lightning_trainer import fit_nothing, make_trainer
from ablatio.training.run import quiet_libraries

TRAINER_OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


# Lightning says so where it finds Slurm; our trainers never ask it.
without_srun = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@without_srun
def test_trainer_ignores_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_GRADIENT_CLIP_VAL", "0.125")
    assert pl.Trainer(**TRAINER_OPTIONS).gradient_clip_val == 0.125, "Lightning no longer reads these variables"
    assert make_trainer(accelerator="cpu").gradient_clip_val is None
    assert os.environ["PL_TRAINER_GRADIENT_CLIP_VAL"] == "0.125"


@without_srun
def test_trainer_does_not_ask_lightning_for_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job of `sbatch --ntasks 2`, with one task on a machine or a rank for each."""
    for name, value in {"NTASKS": "2", "JOB_NAME": "study", "PROCID": "1", "LOCALID": "1", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(RuntimeError, match="--ntasks=2"):
        pl.Trainer(**TRAINER_OPTIONS)
    assert make_trainer(accelerator="cpu").num_devices == 1


@without_srun
def test_trainer_ignores_callbacks_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "stranger-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (known / "entry_points.txt").write_text("[lightning.pytorch.callbacks_factory]\nit = stranger:make\n")
    (tmp_path / "stranger.py").write_text(
        "from lightning.pytorch import Callback\nclass Stranger(Callback): pass\ndef make(): return [Stranger()]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def names(trainer: pl.Trainer) -> list[str]:
        return [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]

    assert "Stranger" in names(pl.Trainer(**TRAINER_OPTIONS)), "Lightning no longer loads such callbacks"
    assert "Stranger" not in names(make_trainer(accelerator="cpu"))
    assert "Stranger" in names(pl.Trainer(**TRAINER_OPTIONS)), "other trainers in this process must be unaffected"


def threads() -> tuple[int, int]:
    """Number of Python threads, and of all threads of the process where /proc exists."""
    return threading.active_count(), len([*Path("/proc/self/task").glob("*")])


def test_trial_fit_leaves_no_threads_or_signal_handlers() -> None:
    def heard(number: int, frame: object) -> None:
        raise AssertionError

    old = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        before = threads()
        with warnings.catch_warnings():
            quiet_libraries()
            fit_nothing()
        assert threads() == before
        assert all(signal.getsignal(number) is heard for number in old)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
