"""A checkpoint does not know how many devices wrote it: 2 ranks -> 1 device -> 2 ranks is one run."""

from pathlib import Path

import pytest
from helpers.gangs import TINY, TWO, finished, rows

from ablatio.storage.checkpoints import Checkpoints

STEPS = ("train.steps=6", "train.checkpoint_every=2", "train.keep=9")


def back_to(folder: Path, step: int) -> None:
    """Leave the folder as a run that was interrupted at this step."""
    Checkpoints(folder / "checkpoints").forget(after=step)
    (folder / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "stabilizer"),
    [
        ("ddp", "[clip,ema]"),
        pytest.param("fsdp", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("tensor", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("context", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("pipeline", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("zero2", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("zero3", "[clip]", marks=pytest.mark.long),
    ],
)
def test_two_one_two(tmp_path: Path, strategy: str, stabilizer: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    two = (f"strategy={strategy}", "trainer.devices=2")
    for name, words in (("one", ()), ("mixed", two)):
        done = finished(*TINY, *STEPS, f"stabilizer={stabilizer}", *words, f"out={tmp_path}", f"name={name}")
        assert done.returncode == 0, done.stderr
    mixed = tmp_path / "mixed"
    for step, words in ((2, ("strategy=single", "trainer.devices=1")), (4, two)):
        back_to(mixed, step)
        done = finished(f"resume={mixed}", *words)
        assert done.returncode == 0, done.stderr
    for own, theirs in zip(rows(tmp_path / "one"), rows(mixed), strict=True):
        assert theirs == pytest.approx(own, abs=1e-5)


def test_run_id_is_that_of_one_device() -> None:
    from ablatio.config.compose import compose_run
    from ablatio.training.run_folder import run_id

    alone, together = (compose_run([*TINY, *words]).config for words in ((), TWO))
    assert run_id(alone) == run_id(together)
