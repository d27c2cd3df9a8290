"""A run that learns from another run: end to end, killed and resumed, and what it refuses of a teacher's folder."""

import json
from pathlib import Path

import pytest
from helpers.runs import TINY, Finished, ablatio, cut_and_resumed, metrics, summary


@pytest.fixture
def settings(tmp_path: Path, text_file: Path) -> list[str]:
    """Of a student; the teacher, wider and of other parts, is trained already."""
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


def test_a_finished_student_needs_its_teacher_no_more(tmp_path: Path, settings: list[str]) -> None:
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert ablatio(["evaluate", str(tmp_path / "whole")], tmp_path / "log").code == 0
    assert "no run folder" in refused(settings, tmp_path).err


def test_another_teacher_does_not_go_on(tmp_path: Path, settings: list[str]) -> None:
    """The folder holds other weights when the run is resumed."""
    cut = tmp_path / "cut"
    ablatio(["train", *settings, "name=cut"], tmp_path / "log", kill_when=cut / "checkpoints/step-00000004.json")
    for path in (tmp_path / "teacher" / "checkpoints").glob("step-00000012*"):
        path.unlink()
    ended = ablatio(["train", f"resume={cut}"], tmp_path / "log")
    assert ended.code == 2 and "began with step 12" in ended.err


def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path: Path, settings: list[str]) -> None:
    words = ["tokenizer=bpe" if word == "tokenizer=bytes" else word for word in settings]
    said = refused(words, tmp_path, "tokenizer.vocab_size=300").err
    assert "reads other tokens" in said and "tokenizer=bytes there and bpe here" in said


def test_ids_of_another_number_are_refused(tmp_path: Path, settings: list[str]) -> None:
    assert "model.vocab_size=300" in refused(settings, tmp_path, "model.vocab_size=300").err


def test_a_teacher_must_be_named(tmp_path: Path, settings: list[str]) -> None:
    assert "objective.teacher=runs/NAME" in refused(settings, tmp_path, "objective.teacher=null").err


def test_a_teacher_s_folder_is_read_with_care(tmp_path: Path, settings: list[str]) -> None:
    """A flipped bit, and a config that asks for an object to be built: both are refused, and nothing runs."""
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
