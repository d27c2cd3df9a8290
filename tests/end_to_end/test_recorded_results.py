"""Recorded results of shipped studies: the cheapest arm, trained again, gives the recorded score."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import ablatio, summary

from ablatio.config.grammar import text_of
from ablatio.config.yaml_files import SWEEP, options_of, read_yaml
from ablatio.storage.paths import shipped
from ablatio.sweep.plan import plan_sweep


def recorded(name: str) -> dict[str, Any]:
    return dict(read_yaml(shipped("sweeps") / "results" / f"{name}.yaml"))


def checked() -> list[str]:
    return [name for name in sorted(options_of(SWEEP)) if "check" in recorded(name)]


def start_model(name: str, folder: Path) -> list[str]:
    """Train the model that the arms of a study start from, by the command in the study's header."""
    file = options_of(SWEEP)[name]
    named = file.read().get("model", {}).get("path")
    if named is None:
        return []
    start = Path(named).name
    made = next(line.split()[2:] for line in file.doc.splitlines() if f"name={start}" in line.split())
    ended = ablatio(
        ["train", *made, f"out={folder}", "trainer.threads=1", "trainer.progress=false"], folder / "log", seconds=600
    )
    assert ended.code == 0, ended.err
    return [f"model.path={folder / start}"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", checked())
def test_cheapest_arm_gives_its_recorded_score(tmp_path: Path, name: str) -> None:
    """The tolerance covers other processors and numbers of threads, which sum in another order.

    It is at most a few times what two seeds differ by, and less than the differences that the study is about.
    """
    check = recorded(name)["check"]
    arm = {key: text_of(value) for key, value in check["arm"].items()}
    start = start_model(name, tmp_path)
    (job,) = [
        job
        for job in plan_sweep([f"+sweep={name}", *start]).jobs
        if all(job.arm.get(key, str(job.seed)) == value for key, value in arm.items())
    ]
    words = [*job.overrides, f"out={tmp_path}", "name=arm", "trainer.threads=1", "trainer.progress=false"]
    ended = ablatio(["train", *words], tmp_path / "log", seconds=600)
    assert ended.code == 0, ended.err
    found = summary(tmp_path / "arm")
    if asked := check.get("evaluate"):
        told = ablatio(["evaluate", str(tmp_path / "arm"), *asked, "--json"], tmp_path / "log")
        (found,) = json.loads(told.out)["scores"]
    assert found[check["score"]] == pytest.approx(check["value"], abs=check["tolerance"])
