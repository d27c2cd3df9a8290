"""Runs, studies and exports written by version 0.1.0 load, resume and report the same numbers."""

import csv
import json
import tarfile
from pathlib import Path

import pytest
from helpers.runs import Finished, ablatio, metrics, summary

ARCHIVE = Path(__file__).parents[1] / "helpers" / "previous_version" / "version_0_1.tar.xz"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of version 0.1.0; the paths in its configs are relative to it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def run(old: Path, *words: str) -> Finished:
    done = ablatio(words, old / "log")
    assert done.code == 0, done.err
    return done


@pytest.mark.parametrize("name", ["whole", "tuned", "renamed", "preferred"])
def test_old_runs_have_the_same_scores(old: Path, name: str) -> None:
    done = run(old, "evaluate", f"runs/{name}", "--json")
    assert json.loads(done.out)["scores"] == json.loads((old / "evaluated.json").read_text())[name]
    assert ("written by an older version" in done.err) == (name == "renamed")


@pytest.mark.parametrize(("cut", "whole"), [("cut", "whole"), ("renamed_cut", "renamed")])
def test_old_interrupted_run_resumes_to_the_same_metrics(old: Path, cut: str, whole: str) -> None:
    run(old, "train", f"resume=runs/{cut}")
    assert summary(old / "runs" / cut)["status"] == "done"
    assert metrics(old / "runs" / cut) == metrics(old / "runs" / whole)


def test_old_run_can_start_a_new_run(old: Path) -> None:
    done = run(old, "train", "model=run", "model.path=runs/whole", "train.steps=2", "name=next")
    assert "tensors come from" in done.out and "anew" not in done.out


def test_old_study_is_reported_with_the_same_results(old: Path) -> None:
    run(old, "report", "runs/study")
    made = (old / "runs/study/report/results.csv").read_text()
    numbers = [list(csv.DictReader(text.splitlines())) for text in (made, (old / "study_results.csv").read_text())]
    assert len(numbers[0]) == 8
    assert numbers[0] == numbers[1]


def test_old_study_is_reported_with_current_setting_names(old: Path) -> None:
    run(old, "report", "runs/renamed_study")
    rows = list(csv.DictReader((old / "runs/renamed_study/report/results.csv").read_text().splitlines()))
    assert {row["mlp.normalize"] for row in rows} == {"false", "true"}


def test_resumed_old_study_reruns_arms_with_changed_parts(old: Path) -> None:
    done = run(old, "resume", "runs/renamed_study")
    assert "planned before the source of" in done.out
    before = {name: float(loss) for name, loss in _losses(old, "replaced").items()}
    after = {name: float(loss) for name, loss in _losses(old, "done").items()}
    assert len(before) == 4 and before == after


def _losses(old: Path, state: str) -> dict[str, str]:
    """Held-out loss by job title, for the jobs in this state."""
    from ablatio.sweep.ledger import Ledger
    from ablatio.sweep.study import LEDGER, read_job, run_folder, summary_of

    study = old / "runs/renamed_study"
    states = Ledger(study / LEDGER).read()
    return {
        read_job(study, name).title: str(summary_of(run_folder(study, name))["val/loss"])
        for name, entry in states.items()
        if entry.state == state
    }


def test_old_recipe_is_reported(old: Path) -> None:
    assert "ppo" in run(old, "report", "runs/recipe").out


def test_old_export_loads(old: Path) -> None:
    from ablatio.hf import load

    found = sum(p.numel() for p in load("exported").parameters())
    assert found == summary(old / "runs/whole")["parameters"]
