"""Adaptive designs: searches find a planted optimum, and every arm is tuned with an equal budget."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablatio.registry.kinds import designs
from ablatio.registry.kinds.search_space import TrialResult
from ablatio.sweep.adaptive import trial_seed
from ablatio.sweep.plan import Plan, plan_sweep
from ablatio.sweep.study import Job, write_job

SPACE = ["norm=rmsnorm,layernorm", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "seed=1,2"]


def loss(job: Job, share: float = 1.0) -> float:
    """Quadratic loss in log10(lr): minimum 2.0 at 0.003 for rmsnorm, 1.9 at 0.01 for layernorm."""
    layer = job.config["norm"]["name"] == "layernorm"
    distance = math.log10(job.config["optimizer"]["lr"] / (0.01 if layer else 0.003))
    return 2.0 + distance**2 - 0.1 * layer + 0.5 * (1 - share)


def run(plan: Plan, results: dict[str, Any], rounds: int = 100) -> list[list[Job]]:
    """Feed synthetic losses to the plan until it asks for no more jobs; returns the jobs of each round."""
    history, jobs = [], list(plan.jobs)
    while jobs and len(history) < rounds:
        for job in jobs:
            steps = job.config["train"]["steps"]
            end = job.until or steps
            results[job.id] = {
                "status": "done" if end == steps else "paused",
                "steps": end,
                "val/loss": loss(job, end / steps),
            }
        history.append(jobs)
        jobs = plan.more(results)
    return history


@pytest.mark.parametrize("design", [["design=tpe", "design.trials=30"], ["design=halving", "design.runs=27"]])
def test_search_finds_planted_optimum_and_reruns_it_with_fresh_seeds(design: list[str]) -> None:
    plan = plan_sweep([*SPACE, *design, "design.survivors=1", "design.seed=1"])
    history = run(plan, {})
    finals = [job for job in history[-1] if job.role == "run"]
    assert [job.seed for job in finals] == [1, 2] and len({job.label for job in finals}) == 1
    assert finals[0].arm["norm"] == "layernorm" and loss(finals[0]) < 2.0
    trials = [job for jobs in history for job in jobs if job.role != "run"]
    assert {job.seed for job in trials} == {trial_seed((1, 2))}  # the trials' seed is not one of the compared seeds


def test_halving_continues_the_best_third_of_each_rung() -> None:
    plan = plan_sweep([*SPACE, "design=halving", "design.runs=27", "train.steps=900"])
    first, second, third, last = run(plan, {})
    assert [len(first), len(second), len(third)] == [27, 9, 3]
    assert [{job.until for job in jobs} for jobs in (first, second, third)] == [{100}, {300}, {None}]
    assert {job.id for job in third} < {job.id for job in second} < {job.id for job in first}
    assert third[0].rungs.keys() == {"100", "300"} and len(last) == 6
    assert max(map(loss, second)) <= min(loss(job) for job in first if job.id not in {j.id for j in second})


@pytest.mark.parametrize("eta", range(2, 11))
def test_halving_has_as_many_rungs_as_powers_of_eta(eta: int) -> None:
    """From the share 1/eta^k on the k-th rung after it trains to the end: products of it may round to just below 1."""
    axis = SimpleNamespace(key="lr", values=[str(i) for i in range(eta)], interval=None)
    for k in range(1, 7):
        design = designs.build("halving", {"runs": eta, "eta": eta, "first": 1 / eta**k}, axes=[axis], baseline={})
        told, shares = list[TrialResult](), list[float]()
        while asked := [t for t in design.more(told) if not t.final]:
            shares.append(asked[0].share)
            told += [TrialResult(t, float(t.arm["lr"])) for t in asked]
        assert shares == pytest.approx([eta ** (i - k) for i in range(k + 1)]) and shares[-1] == 1.0


def test_failed_trials_are_eliminated(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_sweep([*SPACE, "design=halving", "design.runs=9"])
    results: dict[str, Any] = {job.id: None for job in plan.jobs[1:]}
    results[plan.jobs[0].id] = {"steps": plan.jobs[0].until, "val/loss": 9.0}
    (only,) = plan.more(results)
    assert only.id == plan.jobs[0].id


@pytest.mark.parametrize("design", ["design=halving", "design=tpe"])
def test_resumed_search_plans_the_same_jobs(tmp_path: Path, design: str) -> None:
    overrides = [*SPACE, design, "train.steps=900", f"out={tmp_path}", "name=study"]
    whole = run(plan_sweep(overrides), {})
    results: dict[str, Any] = {}
    begun = plan_sweep(overrides)
    (tmp_path / "study" / "jobs").mkdir(parents=True)
    for jobs in run(begun, results, rounds=2):
        for job in jobs:
            write_job(tmp_path / "study", job)
    begun.study.write(tmp_path / "study")
    rest = plan_sweep(overrides)
    found = {job.id for jobs in whole for job in jobs}
    assert {job.id for job in rest.jobs} <= found
    assert len(rest.jobs) == len(results)
    for job in rest.jobs:  # jobs without a result yet, as the interrupted sweep left them
        results.setdefault(job.id, None)
    after = [rest.more(results)]
    assert [j.id for j in after[0]] == [j.id for j in whole[2]]


def test_each_arm_gets_an_equal_tuning_budget() -> None:
    plan = plan_sweep(["norm=rmsnorm,layernorm", "tune=optimizer.lr", "trials=7", "seed=1,2,3"])
    default = plan.cells[0].config["optimizer"]["lr"]
    trials, finals = run(plan, {})
    assert Counter(job.label for job in trials) == {"norm=rmsnorm": 7, "norm=layernorm": 7}
    assert {job.role for job in trials} == {"trial"} and {job.seed for job in trials} == {4}
    rates = sorted({job.config["optimizer"]["lr"] for job in trials})
    assert rates == pytest.approx([default * 2.0**i for i in range(-3, 4)])
    for name, best in (("rmsnorm", 0.003), ("layernorm", 0.01)):
        nearest = min(rates, key=lambda rate: abs(math.log(rate / best)))
        assert float(plan.study.tuned[f"norm={name}"]["optimizer.lr"]) == nearest
        own = [job for job in finals if job.arm["norm"] == name]
        assert [job.seed for job in own] == [1, 2, 3] and {job.config["optimizer"]["lr"] for job in own} == {nearest}
        assert f"optimizer.lr={nearest:g}" in own[0].overrides


def test_arm_runs_as_soon_as_its_tuning_is_complete() -> None:
    plan = plan_sweep(["norm=rmsnorm,layernorm", "tune=optimizer.lr", "trials=3"])
    first = {
        job.id: {"val/loss": loss(job), "steps": job.config["train"]["steps"]}
        for job in plan.jobs
        if job.arm["norm"] == "rmsnorm"
    }
    assert [job.label for job in plan.more(first)] == ["norm=rmsnorm"]
    assert plan.more(first) == []  # the jobs are returned only once
