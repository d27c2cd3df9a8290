"""Multirun: arms share data and fail independently; the shipped studies run and give the known results."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.llamas import small_llama
from helpers.runs import TINY, ablatio, summary

from ablatio.config.grammar import text_of
from ablatio.config.yaml_files import SWEEP, options_of, read_yaml
from ablatio.storage.paths import shipped
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.study import jobs_of, run_folder


def test_arms_share_data_and_fail_independently(tmp_path: Path, text_file: Path) -> None:
    arguments = ["train", "-m", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=sweep", "train.steps=4"]
    ended = ablatio([*arguments, "norm=layernorm,rmsnorm", "optimizer.lr=0.001,1e30"], tmp_path / "log")
    assert ended.code == 3, ended.err
    assert "2 of 4 runs failed" in ended.err and "norm=layernorm" in ended.out
    found = runs(tmp_path / "sweep")
    states = {arm: summary(run)["status"] for arm, run in found.items()}
    assert states == {
        "norm=layernorm optimizer.lr=0.001": "done",
        "norm=layernorm optimizer.lr=1e+30": "diverged",
        "norm=rmsnorm optimizer.lr=0.001": "done",
        "norm=rmsnorm optimizer.lr=1e+30": "diverged",
    }
    data = [json.loads((run / "manifest.json").read_text())["data"] for arm, run in found.items() if "0.001" in arm]
    assert data[0] == data[1]
    again = ablatio([*arguments, "norm=layernorm"], tmp_path / "log")
    assert again.code == 2 and "another study" in again.err


def runs(study: Path) -> dict[str, Path]:
    """Run folders by arm label."""
    return {job.label: run_folder(study, job.id) for job in jobs_of(study)}


STUDY = ["train", "-m", "+sweep=position_extrapolation", "name=study", "data.val_tokens=8192"]


def scores(run: Path, log: Path) -> list[dict[str, object]]:
    asked = ablatio(["evaluate", str(run), "--length", "128,512", "--tokens", "16384", "--json"], log)
    return list(json.loads(asked.out)["scores"])


@pytest.mark.long
@pytest.mark.slow
def test_alibi_extrapolates_and_rope_does_not(tmp_path: Path) -> None:
    """sweeps/position_extrapolation.yaml with two of its arms, evaluated at 128 and 512 bytes after training at 128."""
    ended = ablatio([*STUDY, f"out={tmp_path}", "position=alibi,rope"], tmp_path / "log")
    assert ended.code == 0, ended.err
    found = runs(tmp_path / "study")
    alibi, alibi_far = scores(found["position=alibi"], tmp_path / "log")
    rope, rope_far = scores(found["position=rope"], tmp_path / "log")
    assert alibi_far["bpb"] < alibi["bpb"] + 0.15
    assert rope_far["bpb"] > rope["bpb"] + 0.2


def test_learned_positions_refuse_longer_texts(tmp_path: Path) -> None:
    ended = ablatio([*STUDY, f"out={tmp_path}", "position=learned,rope", "train.steps=4"], tmp_path / "log")
    assert ended.code == 0, ended.err
    known, beyond = scores(runs(tmp_path / "study")["position=learned"], tmp_path / "log")
    assert "bpb" in known and "at most model.max_len=128" in str(beyond["refused"])


# One thread: a forked child hangs in a second one if the parent's OpenMP has started threads before the fork.
SHORT = ("train.steps=2", "data.val_tokens=2048", "trainer.progress=false", "trainer.threads=1")


def start_model(name: str, folder: Path) -> list[str]:
    """Train the start model of a study by the command in its header, shortened; a small LLaMA replaces SmolLM2."""
    file = options_of(SWEEP)[name]
    named = file.read().get("model", {}).get("path")
    if named is None:
        return []
    if named == "smollm2":
        return [f"model.path={small_llama(folder / 'llama')}"]
    made = next(line.split()[1:] for line in file.doc.splitlines() if f"name={Path(named).name}" in line.split())
    short = [*SHORT, f"out={folder}"]
    ended = ablatio([word for word in made if not word.startswith("train.steps")] + short, folder / "log")
    assert ended.code == 0, ended.err
    return [f"model.path={folder / Path(named).name}"]


@pytest.mark.matrix(share=15)
@pytest.mark.parametrize("name", sorted(options_of(SWEEP)))
def test_each_shipped_study_is_complete_and_trains(tmp_path: Path, name: str) -> None:
    """All arms can be planned, the first and last take a step, and recorded results name arms of the study."""
    study = options_of(SWEEP)[name].read()["sweep"]
    results = read_yaml(shipped("sweeps") / "results" / f"{name}.yaml")
    assert study["question"] and study["expected"] and results["measured"] and results["found"]
    jobs = plan_sweep([f"+sweep={name}", *start_model(name, tmp_path)]).jobs
    arms = [[word for word in job.overrides if ".train.steps=" not in word] for job in jobs]  # a stage's own length
    values = {text_of(value) for axis in study["axes"].values() for value in axis}
    assert {str(key).split()[0] for key in results["recorded"]} <= values
    for number, arm in enumerate((arms[0], arms[-1])):
        ended = ablatio(["train", *arm, *SHORT, f"out={tmp_path}", f"name=arm{number}"], tmp_path / "log")
        assert ended.code == 0, ended.err


def test_smollm2_experiment_on_a_small_llama(tmp_path: Path) -> None:
    """Checks the chat template, the frozen base with LoRA, and sample answers in the summary."""
    start = ["experiment=smollm2_gsm", f"model.path={small_llama(tmp_path / 'llama')}", "train.steps=2"]
    short = ["source.size=60", "data.val_fraction=0.2", "data.val_tokens=2048", "trainer.progress=false"]
    ended = ablatio(["train", *start, *short, f"out={tmp_path}", "name=gsm"], tmp_path / "log")
    assert ended.code == 0, ended.err
    found: Any = summary(tmp_path / "gsm")
    assert len(found["samples"]) == 4 and "####" in found["samples"][0]["expected"]
    assert 0 < found["trainable_parameters"] < found["parameters"]
    config = json.loads((tmp_path / "gsm/config.json").read_text())
    assert config["template"]["name"] == "chatml" and "SmolLM" in config["template"]["system"]
