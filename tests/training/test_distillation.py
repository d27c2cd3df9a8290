"""Distillation from another run: end to end, killed and resumed, and rejected teacher folders."""

import json
from pathlib import Path

import pytest
from helpers.runs import TINY, Finished, ablatio, cut_and_resumed, metrics, summary


@pytest.fixture
def settings(tmp_path: Path, text_file: Path) -> list[str]:
    """Settings of a student, after training a wider teacher with other parts."""
    words = [*TINY, f"source.path={text_file}", f"out={tmp_path}"]
    wider = ["name=teacher", "model.d_model=32", "position=alibi", "optimizer.lr=0.01"]
    assert ablatio(["train", *words, *wider], tmp_path / "log").code == 0
    return [*words, "objective=distillation", f"objective.teacher={tmp_path / 'teacher'}"]


def refused(settings: list[str], tmp_path: Path, *more: str) -> Finished:
    ended = ablatio(["train", *settings, "name=refused", *more], tmp_path / "log")
    assert ended.code in (2, 5) and "Traceback" not in ended.err, ended.err
    assert not (tmp_path / "refused" / "checkpoints").exists()
    return ended


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, settings: list[str]) -> None:
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    result = summary(tmp_path / "whole")
    assert result["after"]["loss"] < result["before"]["loss"]
    rows = metrics(tmp_path / "whole")
    assert any(row["train/divergence"] for row in rows)
    cut = cut_and_resumed(settings, tmp_path)
    assert metrics(cut) == rows
    last = "checkpoints/step-00000012.model.safetensors"
    assert (cut / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_finished_student_is_evaluated_without_its_teacher(tmp_path: Path, settings: list[str]) -> None:
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert ablatio(["evaluate", str(tmp_path / "whole")], tmp_path / "log").code == 0
    assert "no run folder" in refused(settings, tmp_path).err


def test_resume_rejects_a_changed_teacher(tmp_path: Path, settings: list[str]) -> None:
    """The teacher's folder no longer holds the weights that the run started with."""
    cut = tmp_path / "cut"
    ablatio(["train", *settings, "name=cut"], tmp_path / "log", kill_when=cut / "checkpoints/step-00000004.json")
    for path in (tmp_path / "teacher" / "checkpoints").glob("step-00000012*"):
        path.unlink()
    ended = ablatio(["train", f"resume={cut}"], tmp_path / "log")
    assert ended.code == 2 and "began with step 12" in ended.err


def test_teacher_with_another_tokenizer_is_rejected(tmp_path: Path, settings: list[str]) -> None:
    words = ["tokenizer=bpe" if word == "tokenizer=bytes" else word for word in settings]
    error = refused(words, tmp_path, "tokenizer.vocab_size=300").err
    assert "reads other tokens" in error and "tokenizer=bytes there and bpe here" in error


def test_different_vocabulary_size_is_rejected(tmp_path: Path, settings: list[str]) -> None:
    assert "model.vocab_size=300" in refused(settings, tmp_path, "model.vocab_size=300").err


def test_missing_teacher_is_rejected(tmp_path: Path, settings: list[str]) -> None:
    assert "objective.teacher=runs/NAME" in refused(settings, tmp_path, "objective.teacher=null").err


def test_tampered_teacher_folder_is_rejected(tmp_path: Path, settings: list[str]) -> None:
    """A config that names code and weights with a flipped bit are both rejected, and no code runs."""
    config = tmp_path / "teacher" / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"evil": {"_target_": "os.system", "command": "touch pwned"}}))
    assert "_target_" in refused(settings, tmp_path).err
    config.write_text(plain)
    for weights in (tmp_path / "teacher" / "checkpoints").glob("*.model.safetensors"):
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(bytes(data))
    assert "No usable checkpoint" in refused(settings, tmp_path).err
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
