"""A stack whose layers have different parts resumes bit for bit."""

import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.random_stacks import random_stack
from helpers.runs import TINY, metrics
from helpers.small_text import small_text
from rich.console import Console

from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.run import train
from ablatio.training.run_spec import RunSpec

STEPS, CUT = 4, 2
SETTINGS = (
    *(word for word in TINY if not word.startswith("model.")), "train.batch_size=2", "train.log_every=1",
    f"train.steps={STEPS}", f"train.checkpoint_every={CUT}", "train.val_every=null", "train.keep=9",
    "data.val_tokens=64", "model.dropout=0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small learnable text."""
    return small_text(tmp_path_factory.mktemp("text") / "text.txt")


def cut_at(run: Path, step: int, copy: Path) -> None:
    """Copy a run as if it had been killed after it saved `step`."""
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    Checkpoints(copy / "checkpoints").forget(after=step)


def after(run: Path) -> bytes:
    """The weights after the last step."""
    return (run / f"checkpoints/step-{STEPS:08d}.model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.matrix(share=60)
@pytest.mark.parametrize("seed", range(300))
def test_a_random_stack_resumes_bit_for_bit(seed: int, tmp_path: Path, text_file: Path) -> None:
    """Four steps give the bytes that two steps, a new model from their checkpoint and two more steps give."""
    config = random_stack(seed, *SETTINGS, f"source.path={text_file}")
    if config is None:
        return
    whole, cut, quiet = tmp_path / "whole", tmp_path / "cut", Console(file=io.StringIO())
    train(RunSpec(config), whole, quiet)
    cut_at(whole, CUT, cut)
    assert json.loads((whole / "summary.json").read_text())["status"] == "done"
    train(RunSpec(config), cut, quiet, resume=True)
    assert after(cut) == after(whole)
    assert metrics(cut) == metrics(whole)
