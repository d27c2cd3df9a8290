"""Command line runs of adaptive sweeps: tuning per arm, search with survivors, the plan shown before the first run."""

import json
from pathlib import Path

from helpers.runs import TINY, ablatio

from ablatio.sweep.study import Study, jobs_of

SEARCH = ["design=halving", "design.runs=4", "design.eta=2", "design.first=0.5", "design.survivors=1"]


def test_arms_are_tuned_then_compared_and_not_repeated(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=s", "train.steps=4", "workers=2"]
    asked = ["norm=rmsnorm,layernorm", "tune=optimizer.lr", "trials=2", "seed=1,2", "plan=0.1"]
    ended = ablatio(["train", "-m", *settings, *asked], tmp_path / "log")
    assert ended.code == 0, ended.err
    assert "4 trials first, then 2 seeds" in ended.out and "To see 0.1 nats between 2 arms takes" in ended.out
    folder = tmp_path / "s"
    jobs = list(jobs_of(folder))
    assert sorted(job.role for job in jobs) == ["run"] * 4 + ["trial"] * 4
    tuned = Study.read(folder).tuned
    for job in jobs:
        assert json.loads((folder / "runs" / job.id / "summary.json").read_text())["status"] == "done"
        if job.role == "run":
            assert str(job.config["optimizer"]["lr"]) == tuned[job.label]["optimizer.lr"]
    again = ablatio(["train", "-m", *settings, *asked], tmp_path / "log")
    assert again.code == 0 and "4 of 4 done" in again.out and len(list(jobs_of(folder))) == 8
    assert Study.read(folder).tuned == tuned


def test_halving_stops_half_and_runs_survivor_with_fresh_seeds(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=s", "train.steps=4", "workers=2"]
    space = ["norm=rmsnorm,layernorm", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "seed=1,2"]
    ended = ablatio(["train", "-m", *settings, *space, *SEARCH], tmp_path / "log")
    assert ended.code == 0, ended.err
    steps = {}
    for job in jobs_of(tmp_path / "s"):
        summary = json.loads((tmp_path / "s" / "runs" / job.id / "summary.json").read_text())
        steps.setdefault((job.role, job.seed), []).append(summary["steps"])
    assert {key: sorted(found) for key, found in steps.items()} == {
        ("rung", 3): [2, 2], ("trial", 3): [4, 4], ("run", 1): [4], ("run", 2): [4],
    }  # fmt: skip
