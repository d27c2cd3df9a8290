"""Recipes in a report: scores before and after each stage; arms are compared on the last stage's score."""

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ablatio.cli.main import main
from ablatio.registry.kinds.search_space import Axis
from ablatio.report.analysis.findings import find
from ablatio.report.html.page_data import content
from ablatio.report.read.stages import ordered, stages_of
from ablatio.report.read.table import read_table
from ablatio.report.watch import fingerprint
from ablatio.sweep.study import JOBS, Job, Study, run_folder, write_job

KL = "stages.ppo.alignment.kl_coef"
REWARDS = {("0.05", 1): 0.9, ("0.05", 2): 0.7, ("0.2", 1): 0.5, ("0.2", 2): 0.4}


def write_run(folder: Path, task: str, seed: int, name: str, better: str, before: float, after: float) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": {"name": task}, "seed": seed, "optimizer": {"lr": 0.1}}))
    summary = {
        "status": "done", f"val/{name}": after, "before": {name: before}, "after": {name: after}, "steps": 4,
        "tokens": 64, "seconds": 2.0, "score": {"name": f"val/{name}", "value": after, "better": better},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Study of two KL coefficients and two seeds: eight runs, four of which are stages shared by both arms."""
    (tmp_path / JOBS).mkdir()
    Study("prices", "What does leaving cost?", axes=[Axis(KL, ("0.05", "0.2"))], seeds=(1, 2),
          stages=("sft", "reward", "ppo")).write(tmp_path)  # fmt: skip

    def put(name: str, arm: Mapping[str, str], seed: int, stage: str, takes: tuple[str, ...], *run: Any) -> None:
        role: Any = "run" if stage == "ppo" else "stage"
        write_job(tmp_path, Job(name, arm, seed, ("recipe=instructgpt",), {}, role, stage=stage, takes=takes))
        write_run(run_folder(tmp_path, name), *run)

    for seed in (1, 2):
        put(f"s{seed}", {}, seed, "sft", (), "sft", seed, "loss", "lower", 5.0, 4.0 + seed / 10)
        put(f"r{seed}", {}, seed, "reward", (f"s{seed}",), "reward", seed, "accuracy", "higher", 0.5, 0.8)
    for (price, seed), reward in REWARDS.items():
        takes = f"r{seed}", f"s{seed}"
        put(f"p{price}{seed}", {KL: price}, seed, "ppo", takes, "policy", seed, "reward", "higher", 0.1, reward)
    return tmp_path


def test_stages_report_scores_before_and_after(sweep: Path) -> None:
    found = stages_of(read_table([sweep]).runs)
    assert [(s.name, s.task, list(s.takes), s.runs) for s in found] == [
        ("sft", "sft", [], 2), ("reward", "reward", ["sft"], 2),
        ("ppo", "policy", ["reward", "sft"], 2), ("ppo", "policy", ["reward", "sft"], 2),
    ]  # fmt: skip
    assert [s.arm for s in found] == ["", "", f"{KL}=0.05", f"{KL}=0.2"]
    assert (found[0].before, found[0].after) == (5.0, pytest.approx(4.15))
    assert (found[2].score, found[2].better, found[2].after) == ("val/reward", "higher", pytest.approx(0.8))


def test_arms_are_compared_on_the_last_stage(sweep: Path) -> None:
    found = find(read_table([sweep]))
    assert found.metric == "val/reward" and found.better == "high"
    assert [(row.arm.name, row.n, pytest.approx(row.mean)) for row in found.rows] == [
        ("kl_coef=0.05", 2, 0.8),
        ("kl_coef=0.2", 2, 0.45),
    ]
    page = content(found)
    assert [s["name"] for s in page["stages"]] == ["sft", "reward", "ppo", "ppo"]
    assert page["cost"]["runs"] == 8 and page["cost"]["trials"] == 0 and page["rates"] == []


def test_report_files_list_the_stages(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    assert "reward, sft" in capsys.readouterr().out
    text = (sweep / "report" / "report.md").read_text()
    assert "| reward | all | reward | sft | val/accuracy | 0.5000 | 0.8000 | higher | 2 of 2 |" in text
    with (sweep / "report" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows].count("stage") == 4 and {row["stage"] for row in rows} == {
        "sft",
        "reward",
        "ppo",
    }


def write_recipe(folder: Path, price: str, reward: float, seed: int = 1) -> Path:
    """Write the folder of one recipe with the stages sft and ppo."""
    write_run(folder / "01-sft", "sft", seed, "loss", "lower", 5.0, 4.0)
    write_run(folder / "02-ppo", "policy", seed, "reward", "higher", 0.1, reward)
    stages = [
        {"stage": "sft", "folder": "01-sft", "takes": []},
        {"stage": "ppo", "folder": "02-ppo", "takes": ["sft"]},
    ]
    overrides = ["recipe=mine", f"{KL}={price}", f"seed={seed}", f"name={folder.name}"]
    (folder / "recipe.json").write_text(json.dumps({"overrides": overrides, "stages": stages}))
    return folder


def test_recipe_folder_is_one_arm_with_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recipe(tmp_path / "r", "0.1", 0.6)
    found = find(read_table([folder]))
    assert [row.mean for row in found.rows] == [0.6]
    assert [(s.name, s.before, s.after) for s in stages_of(found.table.runs)] == [("sft", 5, 4), ("ppo", 0.1, 0.6)]
    assert main(["report", str(folder)]) == 0 and "policy" in capsys.readouterr().out


def test_several_recipes_are_arms_named_by_differing_overrides(tmp_path: Path) -> None:
    cells = [("0.1", 1, 0.6), ("0.1", 2, 0.7), ("0.3", 1, 0.3), ("0.3", 2, 0.5)]
    folders = [write_recipe(tmp_path / f"r{i}", price, reward, seed) for i, (price, seed, reward) in enumerate(cells)]
    found = find(read_table(folders))
    assert [(row.arm.label, row.n, pytest.approx(row.mean)) for row in found.rows] == [
        (f"{KL}=0.1", 2, 0.65), (f"{KL}=0.3", 2, 0.4),
    ]  # fmt: skip
    assert [(s.name, s.runs) for s in stages_of(found.table.runs)] == [("sft", 2), ("sft", 2), ("ppo", 2), ("ppo", 2)]


def test_stages_are_ordered_after_their_inputs(sweep: Path) -> None:
    runs = read_table([sweep]).runs
    assert ordered(runs[::-1]) == ordered(runs) == ["sft", "reward", "ppo"]


def test_unfinished_recipe_can_be_reported(tmp_path: Path) -> None:
    folder = write_recipe(tmp_path / "r", "0.1", 0.6)
    for path in (folder / "02-ppo").iterdir():
        path.unlink()
    found = find(read_table([folder]))
    assert [(s.name, s.done) for s in stages_of(found.table.runs)] == [("sft", 1), ("ppo", 0)]
    (folder / "recipe.json").write_text("{")
    assert "recipe.json cannot be read" in read_table([folder]).notes[0]


OPENED: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


@pytest.mark.parametrize("what", ["study", "recipe"])
def test_all_that_a_report_reads_is_watched(
    what: str, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is the interpreter's own audit of opened files."""
    folder = sweep if what == "study" else write_recipe(tmp_path / "one", "0.1", 0.6)
    sys.addaudithook(_note_opened)  # cannot be removed; without a list it notes nothing
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    find(read_table([folder]))
    opened = {Path(path) for path in OPENED or () if path.startswith(str(folder))}
    monkeypatch.setattr(sys.modules[__name__], "OPENED", None)
    written_once = {"manifest.json"} | {path.name for path in (sweep / JOBS).iterdir()}
    read = [path for path in opened if path.is_file() and path.name not in written_once]
    assert {path.name for path in read} >= {"config.json", f"{what}.json"}
    for path in read:
        before = fingerprint([folder])
        path.write_bytes(path.read_bytes() + b" ")
        assert fingerprint([folder]) != before, path
