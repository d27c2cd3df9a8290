"""Lightning's Trainer takes what a config says and nothing from elsewhere, and may be tried where runs are forked."""

import os
import signal
import threading
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest

from ablatio.training.lightning_trainer import fit_nothing, make_trainer
from ablatio.training.run import quiet_libraries

LIGHTNINGS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def test_variables_change_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_GRADIENT_CLIP_VAL", "0.125")
    assert pl.Trainer(**LIGHTNINGS).gradient_clip_val == 0.125, "Lightning no longer reads them"
    assert make_trainer(accelerator="cpu").gradient_clip_val is None
    assert os.environ["PL_TRAINER_GRADIENT_CLIP_VAL"] == "0.125"


def test_callbacks_of_other_packages_change_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    assert "Stranger" in names(pl.Trainer(**LIGHTNINGS)), "Lightning no longer looks for them"
    assert "Stranger" not in names(make_trainer(accelerator="cpu"))
    assert "Stranger" in names(pl.Trainer(**LIGHTNINGS)), "a user's own trainer is as before"


def threads() -> tuple[int, int]:
    """Python's own, and the system's where it says them."""
    return threading.active_count(), len([*Path("/proc/self/task").glob("*")])


def test_a_process_that_tried_it_can_be_forked_and_stopped_as_before() -> None:
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
