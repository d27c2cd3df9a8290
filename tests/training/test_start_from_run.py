"""`model=run`: start from another run's weights with another task, other data or another part."""

import json
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.load import load_run

SAME = [o for o in TINY if not o.startswith(("tokenizer", "model."))]


@pytest.fixture
def first(tmp_path: Path, text_file: Path) -> Path:
    folder = tmp_path / "first"
    settings = [o for o in TINY if o != "tokenizer=bytes"] + [f"source.path={text_file}", f"out={folder}", "name=run"]
    ended = ablatio(
        ["train", *settings, "tokenizer.vocab_size=300", "norm=layernorm", "train.steps=20"], folder / "log"
    )
    assert ended.code == 0, ended.err
    return folder / "run"


def test_start_has_the_final_score_of_the_first_run(first: Path, tmp_path: Path, text_file: Path) -> None:
    """On the same text, the score before the first step equals the final score of the first run."""
    settings = [*SAME, f"source.path={text_file}", f"out={tmp_path}", "name=next", "train.steps=2"]
    ended = ablatio(["train", "model=run", f"model.path={first}", *settings], tmp_path / "log")
    assert ended.code == 0, ended.err
    assert summary(tmp_path / "next")["before"]["loss"] == pytest.approx(summary(first)["val/loss"], abs=1e-6)
    assert json.loads((tmp_path / "next" / "config.json").read_text())["norm"]["name"] == "layernorm"
    manifest = json.loads((tmp_path / "next" / "manifest.json").read_text())
    assert not manifest["origin"]["anew"]


def test_start_keeps_the_tokenizer_on_other_text(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"zebra {n} quilt jackdaw " * 30 for n in range(60)))
    settings = [*SAME, f"source.path={other}", f"out={tmp_path}", "name=next", "train.steps=2"]
    ended = ablatio(["train", "model=run", f"model.path={first}", "activation=relu", *settings], tmp_path / "log")
    assert ended.code == 0, ended.err
    (run, _), (old, _) = load_run(tmp_path / "next"), load_run(first)
    assert run.tokenizer.encode(["We, the people"])[0].tolist() == old.tokenizer.encode(["We, the people"])[0].tolist()
    assert "anew" in ended.out and "mlp" in ended.out


def test_finished_run_loads_without_its_origin(first: Path, tmp_path: Path, text_file: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    settings = [*SAME, f"source.path={text_file}", f"out={tmp_path}", "name=next", "train.steps=2"]
    assert ablatio(["train", "model=run", f"model.path={moved}", *settings], tmp_path / "log").code == 0
    shutil.rmtree(moved)
    run, step = load_run(tmp_path / "next")
    assert step == 2
    assert run.model is not None and Checkpoints(tmp_path / "next" / "checkpoints").latest() is not None
