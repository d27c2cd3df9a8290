"""Time probe: each stage of a recipe is really started and stopped, and run times are extrapolated from it."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import KL, SMALL_RECIPE

from ablatio.report.terminal.stage_table import chain, sentences
from ablatio.storage.atomic_write import make_folder, write_json
from ablatio.sweep import time_probe
from ablatio.sweep.plan import Plan, plan_sweep
from ablatio.sweep.study import Job, run_folder, summary_of
from ablatio.sweep.time_probe import Pace, Times, rehearse, times


def stage_chain(plan: Plan) -> list[Job]:
    jobs = {job.id: job for job in plan.jobs}
    return next(chain(job, jobs) for job in plan.jobs if job.role == "run")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_sweep(
        [*SMALL_RECIPE, KL, "train.steps=100000", "stages.sft.train.val_every=1000", "logger=tensorboard"]
    )


@pytest.mark.parametrize(
    ("steps", "every", "flops", "expected"),
    [
        (10, None, 7.0, 1 + 10 * 2 + 3),
        (10, 5, 7.0, 1 + 10 * 2 + 2 * 3),  # validation after 5 steps and at the end
        (10, 20, 7.0, 1 + 10 * 2 + 3),
        (10, 3, 7.0, 1 + 10 * 2 + 4 * 3),
        (10, 5, 14.0, 1 + 2 * (10 * 2 + 2 * 3)),
        (10, 5, 0.0, 1 + 10 * 2 + 2 * 3),  # unknown FLOPs: no scaling
    ],
)
def test_pace_extrapolation_by_hand(steps: int, every: int | None, flops: float, expected: float) -> None:
    pace = Pace(start=1.0, step=2.0, score=3.0, flops=7.0)
    assert pace.of({"train": {"steps": steps, "val_every": every}}, flops) == expected


def test_rehearsal_stops_each_stage_early(plan: Plan, tmp_path: Path) -> None:
    line = stage_chain(plan)
    paces = rehearse(line, tmp_path)
    assert list(paces) == ["sft", "reward", "ppo"]
    for job in line:
        summary, pace = summary_of(run_folder(tmp_path, job.id)), paces[job.stage]
        done = 4 if job.stage == "ppo" else summary["steps"]
        assert 0 < summary["steps"] < 100_000 and summary["steps"] == done
        assert pace.step == pytest.approx(summary["train_seconds"] / summary["steps"])
        assert min(pace.start, pace.score, pace.flops) > 0
    assert not [*tmp_path.rglob("events.out.*")], "a rehearsal must not write to loggers"
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _has_open(pid, tmp_path)]


def _has_open(process: Path, folder: Path) -> bool:
    try:
        return any(path.readlink().is_relative_to(folder) for path in (process / "fd").iterdir())
    except OSError:
        return False


def test_times_of_finished_runs_are_used_without_rehearsal(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = stage_chain(plan)
    for job in line:
        steps = job.config["train"]["steps"]
        summary = {"status": "done", "steps": steps, "seconds": 0.5 * steps, "train_seconds": 1.0}
        write_json(make_folder(run_folder(tmp_path, job.id)) / "summary.json", summary)
    monkeypatch.setattr(time_probe, "rehearse", lambda *asked: pytest.fail("a stage was started"))
    found = times(plan.jobs, line, tmp_path)
    assert not found.untold and set(found.seconds) == {job.id for job in plan.jobs}
    for job in plan.jobs:
        assert found.seconds[job.id] == pytest.approx(0.5 * job.config["train"]["steps"])


def test_too_slow_stage_gives_no_estimate(plan: Plan) -> None:
    found = times(plan.jobs, stage_chain(plan), None, patience=0.0)
    assert found == Times({}, "sft")
    lines = list(sentences(plan, found))
    assert "of computing" not in lines[0] and "not told: sft came to no step" in lines[1]


def test_failing_stage_ends_the_rehearsal(plan: Plan, tmp_path: Path) -> None:
    sft, reward, ppo = stage_chain(plan)
    broken = replace(reward, config={**reward.config, "optimizer": {**reward.config["optimizer"], "lr": 1e30}})
    assert list(rehearse([sft, broken, ppo], tmp_path)) == ["sft"]
