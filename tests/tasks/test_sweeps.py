"""Multirun: arms share what they can, fail alone, and the study of position signals has the shape that is known."""

import json
from pathlib import Path

import pytest
from runs import TINY, ablatio, summary

from ablatio.sweep.plan import plan_sweep
from ablatio.yamls import SWEEP, options_of


def test_a_sweep_runs_all_arms_on_the_same_data_and_a_bad_one_fails_alone(tmp_path: Path, text_file: Path) -> None:
    arguments = ["train", "-m", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=sweep", "train.steps=4"]
    ended = ablatio([*arguments, "norm=layernorm,rmsnorm", "optimizer.lr=0.001,1e30"], tmp_path / "log")
    assert ended.code == 3, ended.err
    assert "2 of 4 runs failed" in ended.err and "norm=layernorm" in ended.out
    states = {i: summary(tmp_path / "sweep" / str(i))["status"] for i in range(4)}
    assert states == {0: "done", 1: "diverged", 2: "done", 3: "diverged"}
    data = [json.loads((tmp_path / "sweep" / str(i) / "manifest.json").read_text())["data"] for i in (0, 2)]
    assert data[0] == data[1]
    again = ablatio([*arguments, "norm=layernorm,rmsnorm"], tmp_path / "log")
    assert again.code == 2 and "holds runs already" in again.err


STUDY = ["train", "-m", "+sweep=position_extrapolation", "name=study", "data.val_tokens=8192"]


def scores(run: Path, log: Path) -> list[dict[str, object]]:
    asked = ablatio(["evaluate", str(run), "--length", "128,512", "--tokens", "16384", "--json"], log)
    return list(json.loads(asked.out)["scores"])


@pytest.mark.slow
def test_position_study_has_its_shape(tmp_path: Path) -> None:
    """sweeps/position_extrapolation.yaml with two of its arms: alibi stays flat beyond 128 bytes, rope does not."""
    ended = ablatio([*STUDY, f"out={tmp_path}", "position=alibi,rope"], tmp_path / "log")
    assert ended.code == 0, ended.err
    (alibi, alibi_far), (rope, rope_far) = (scores(tmp_path / "study" / n, tmp_path / "log") for n in "01")
    assert alibi_far["bpb"] < alibi["bpb"] + 0.15
    assert rope_far["bpb"] > rope["bpb"] + 0.2


def test_a_learned_table_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    ended = ablatio([*STUDY, f"out={tmp_path}", "position=learned", "train.steps=4"], tmp_path / "log")
    assert ended.code == 0, ended.err
    known, beyond = scores(tmp_path / "study/0", tmp_path / "log")
    assert "bpb" in known and "model.max_len=128 and no more" in str(beyond["refused"])


@pytest.mark.parametrize("name", sorted(options_of(SWEEP)))
def test_each_study_is_whole_and_its_first_and_last_arm_take_a_step(tmp_path: Path, name: str) -> None:
    """All arms pass the checks; what was recorded names arms of the study."""
    study = options_of(SWEEP)[name].read()["sweep"]
    assert study["question"] and study["expected"] and study["recorded"]
    arms = [job.overrides for job in plan_sweep([f"+sweep={name}"]).jobs]
    values = {str(value) for axis in study["axes"].values() for value in axis}
    assert {str(key).split()[0] for key in study["recorded"]} <= values
    for number, arm in enumerate((arms[0], arms[-1])):
        short = [
            "train.steps=2",
            "data.val_tokens=2048",
            "trainer.progress=false",
            f"out={tmp_path}",
            f"name=arm{number}",
        ]
        ended = ablatio(["train", *arm, *short, f"name=arm{number}"], tmp_path / "log")
        assert ended.code == 0, ended.err
