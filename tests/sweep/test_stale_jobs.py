"""Studies whose code has changed: changed arms run again, and their earlier results are left out."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fakes import engine, job, states
from helpers.runs import TINY, ablatio

from ablatio.errors import UserError
from ablatio.registry.registry import REGISTRIES
from ablatio.report.read.table import read_table
from ablatio.sweep.ledger import Ledger
from ablatio.sweep.plan import current, plan_sweep
from ablatio.sweep.study import Study, jobs_of, write_job


def change_source(monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    entries = REGISTRIES[kind].entries
    monkeypatch.setitem(entries, name, replace(entries[name], digest="ab" * 32))


def test_replaced_jobs_are_not_run_or_reported(tmp_path: Path) -> None:
    Study("s").write(tmp_path)
    engine(tmp_path, job("old"), job("both")).run()
    made = engine(tmp_path, job("new"), job("both"), replaced=["old"])
    assert [r.job.id for r in made.run()] == ["new", "both"]
    assert states(made) == {"old": "replaced", "both": "done", "new": "done"}
    table = read_table([tmp_path])
    assert {run.id for run in table.runs} == {"new", "both"} and "1 run made before" in table.notes[0]
    size = (tmp_path / "ledger.jsonl").stat().st_size
    engine(tmp_path, job("new"), job("both"), replaced=["old"]).run()
    assert (tmp_path / "ledger.jsonl").stat().st_size == size  # recorded only once


def test_restored_job_is_open_again(tmp_path: Path) -> None:
    engine(tmp_path, job("a")).run()
    engine(tmp_path, job("b"), replaced=["a"]).run()
    made = engine(tmp_path, job("a"), replaced=["b"])
    made.run()
    assert states(made) == {"a": "done", "b": "replaced"}


def test_replacing_a_job_invalidates_its_claim(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.plan(["a"])
    claim = ledger.claim("a", ledger.entries["a"])
    assert claim
    ledger.replace(["a", "unknown"])
    ledger.end(claim, "done")
    assert Ledger(tmp_path / "ledger.jsonl").read()["a"].state == "replaced" and not ledger.begin(claim)


def test_join_is_rejected_for_jobs_the_owner_did_not_plan(tmp_path: Path) -> None:
    """A joined sweep with other jobs would run them although the study's folder does not hold their settings."""
    from ablatio.sweep.lock import owned

    with owned(tmp_path, False):
        pid = os.fork()
        if pid == 0:
            try:
                engine(tmp_path, job("a"), job("mine"), join=True).run()
            except UserError as error:
                os._exit(7 if "1 of 2 runs are not among those" in str(error) else 1)
            os._exit(0)
        # The joined sweep waits until the owner has written its plan.
        threading.Timer(0.3, lambda: Ledger(tmp_path / "ledger.jsonl").plan(["a"])).start()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_jobs_that_depend_on_a_changed_stage_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_sweep(["recipe=instructgpt", "stages.ppo.alignment.kl_coef=0.05,0.2"])
    (tmp_path / "jobs").mkdir()
    for one in plan.jobs:
        write_job(tmp_path, one)
    assert len(current(tmp_path)) == len(plan.jobs)
    change_source(monkeypatch, "task", "reward")
    assert {one.stage for one in current(tmp_path).values()} == {"sft"}


def test_resume_reruns_only_arms_of_the_changed_part(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = [f"source.path={text_file}", f"out={tmp_path}", "name=s"]
    command = ["train", "-m", *TINY, *place, "train.steps=4", "table=0"]
    command += ["norm=rmsnorm,layernorm", "seed=1,2"]
    assert ablatio(command, tmp_path / "log").code == 0
    before = {one.id for one in jobs_of(tmp_path / "s")}
    change_source(monkeypatch, "norm", "rmsnorm")
    again = ablatio(["resume", str(tmp_path / "s")], tmp_path / "log")
    assert again.code == 0, again.err
    assert "2 jobs were planned before the source of norm/rmsnorm changed (2 of them done)" in again.out
    done = [json.loads(text) for text in (tmp_path / "s/ledger.jsonl").read_text().splitlines()]
    assert sum(entry["state"] == "done" for entry in done) == 6
    runs = read_table([tmp_path / "s"]).runs
    assert len(runs) == 4 and sum(run.id in before for run in runs) == 2
    assert {run.arm["norm"] for run in runs if run.id in before} == {"layernorm"}


@pytest.mark.parametrize("design", [["design=halving", "design.runs=2", "design.survivors=1"], []])
def test_match_time_reuses_recorded_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, design: list[str]) -> None:
    """match=time fixes the steps of each arm once: measuring again would change its jobs."""
    clock = iter(0.4 + 0.1 * (i % 7) for i in range(100))
    monkeypatch.setattr("ablatio.training.estimate.seconds_per_step", lambda spec, times=3: next(clock))
    asked = ["position=rope,alibi", "match=time", "train.steps=900", f"out={tmp_path}", *design]
    first = plan_sweep([*asked, "name=s"])
    (tmp_path / "s" / "jobs").mkdir(parents=True)
    for one in first.jobs:
        write_job(tmp_path / "s", one)
    first.study.write(tmp_path / "s")
    ids = {one.id for one in first.jobs}
    assert {one.id for one in plan_sweep([*asked, "name=s"]).jobs} == ids
    assert {one.id for one in plan_sweep([*asked, "name=t"]).jobs} != ids
