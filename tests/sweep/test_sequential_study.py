"""Sequential studies through the planner and the real engine: looks, limits, kills, failures, more seeds by hand."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import sequential_runs, warm_python

from ablatio.errors import AblatioError, ConfigError, UserError
from ablatio.report.analysis.findings import find
from ablatio.report.analysis.sequential import is_sequential
from ablatio.report.read.table import read_table
from ablatio.report.terminal.plan_table import sentences
from ablatio.sweep import run_cost
from ablatio.sweep.adaptive import trial_seed
from ablatio.sweep.plan import Plan, plan_sweep
from ablatio.sweep.study import Job, Study, jobs_of, write_job

ARMS = "norm=layernorm,rmsnorm,dyt"
TINY = ["size=tiny", "tokenizer=bytes", "train.steps=20", "data.val_tokens=2048"]


def fake_study(folder: Path, *overrides: str, planted: dict[str, Any] | None = None, kill: str = "") -> int:
    """Run a study in a process of its own; its exit code."""
    command = [str(Path(sequential_runs.__file__)), *TINY, *overrides, f"out={folder}", "name=study"]
    where = {"PLANTED": json.dumps(planted or {}), "KILL_AFTER": kill}
    return warm_python.run(command, env={**os.environ, **where}).returncode


def record(folder: Path) -> dict[str, Any]:
    return Study.read(folder / "study").sequential


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three arms, of which one is better by 15 sd and one is no different."""
    folder = tmp_path_factory.mktemp("sequential")
    assert fake_study(folder, ARMS, "seeds=3..7", planted={"rmsnorm": -0.3}) == 0
    return folder


def test_decided_arms_stop_and_the_baseline_goes_on(whole: Path) -> None:
    found = record(whole)
    first, last = found["looks"][0]["comparisons"], found["looks"][-1]["comparisons"]
    assert found["boundaries"]["sizes"] == [3, 4, 5, 6, 7] and found["end"] in ("decided", "last look")
    assert first["norm=rmsnorm"]["state"] == "resolved" and first["norm=dyt"]["state"] == "open"
    assert len(found["looks"]) > 1 and last["norm=rmsnorm"] == first["norm=rmsnorm"]
    seeds = {label: sorted(j.seed for j in jobs_of(whole / "study") if j.label == label) for label in (*last, "")}
    reached = found["looks"][-1]["seeds"]
    assert seeds["norm=rmsnorm"] == [1, 2, 3] and seeds["norm=dyt"] == list(range(1, reached + 1))
    base = [j.seed for j in jobs_of(whole / "study") if j.label == found["baseline"] == "norm=layernorm"]
    assert sorted(base) == seeds["norm=dyt"]


def test_report_uses_p_and_intervals_of_the_looks(whole: Path) -> None:
    found, told = find(read_table([whole / "study"])), record(whole)
    assert is_sequential(found.table.study) and found.comparison is not None
    pairs = {pair.a: pair for pair in found.comparison.pairs}
    for name, label in (("rmsnorm", "norm=rmsnorm"), ("dyt", "norm=dyt")):
        last = told["looks"][-1]["comparisons"][label]
        d = pairs[name].difference
        assert (d.mean, d.sd, d.n) == (pytest.approx(last["mean"]), pytest.approx(last["sd"]), last["n"])
        assert d.p == pytest.approx(last["sequential_p"]) and d.p >= last["p"]
        assert pairs[name].left_out == 0 and d.high - d.mean > 2 * d.sd / math.sqrt(d.n)  # wider than the plain one
    said, zh = "\n".join(found.said()), "\n".join(found.said("zh"))
    assert "after look 1 of 5" in said and "with alpha spending" in said and "more seeds needed" not in said
    assert "第 1 次检视（共计划 5 次）" in zh and "alpha 消耗" in zh
    with pytest.raises(UserError, match="looks of a sequential study"):
        find(read_table([whole / "study"]), correction="dunnett")
    other = find(read_table([whole / "study"]), baseline="norm=dyt")
    assert "for another baseline p is not corrected" in "\n".join(other.said())


@pytest.mark.matrix
@pytest.mark.parametrize("kill", ["before 1", "after 1"])
def test_killed_study_goes_on_to_the_same_decisions(whole: Path, tmp_path: Path, kill: str) -> None:
    """SIGKILL with a look made and not yet written, and with a look written and its runs not yet planned."""
    command, planted = (ARMS, "seeds=3..7"), {"rmsnorm": -0.3}
    assert fake_study(tmp_path, *command, planted=planted, kill=kill) == -signal.SIGKILL
    assert len(record(tmp_path)["looks"]) == (0 if kill.startswith("before") else 1)
    with pytest.raises(UserError, match="holds a sequential study"):
        plan_sweep([*TINY, ARMS, "seeds=3..20", f"out={tmp_path}", "name=study"])
    assert fake_study(tmp_path, *command, planted=planted) == 0
    assert record(tmp_path)["looks"] == record(whole)["looks"]
    assert {job.id for job in jobs_of(tmp_path / "study")} == {job.id for job in jobs_of(whole / "study")}


def test_diverged_arm_gets_no_verdict_and_a_crash_is_left_out(tmp_path: Path) -> None:
    assert fake_study(tmp_path, ARMS, "seeds=3..5", planted={"rmsnorm": "diverge", "dyt": "crash"}) == 0
    last = record(tmp_path)["looks"][-1]["comparisons"]
    assert last["norm=rmsnorm"]["state"] == "untested" and last["norm=rmsnorm"]["n"] == 2
    assert last["norm=dyt"]["n"] == 2 and last["norm=dyt"]["state"] in ("open", "hopeless", "equal")
    assert "no test of the mean, because runs diverged" in "\n".join(find(read_table([tmp_path / "study"])).said())


def run(plan: Plan, loss: Any, seconds: float = 1.0, known: dict[str, Job] | None = None) -> dict[str, Any]:
    """Feed losses to a plan until it asks for no more jobs; `known` collects them."""
    results: dict[str, Any] = {}
    jobs: list[Job] = list(plan.jobs)
    while jobs:
        for job in jobs:
            end, steps = job.until or job.config["train"]["steps"], job.config["train"]["steps"]
            status = "done" if end == steps else "paused"
            results[job.id] = {"status": status, "steps": end, "val/loss": loss(job), "seconds": seconds}
        (known if known is not None else {}).update({job.id: job for job in jobs})
        jobs = plan.more(results)
    return results


def noisy(job: Job) -> float:
    os.environ.pop("PLANTED", None)
    return float(sequential_runs.loss(job))


def test_margin_makes_equal_arms_stop_early() -> None:
    plan = plan_sweep([*TINY, "norm=layernorm,rmsnorm", "seeds=4..12", "margin=1.0nats"])
    run(plan, noisy)
    (look,) = plan.study.sequential["looks"]
    assert look["comparisons"]["norm=rmsnorm"]["state"] == "equal" and plan.study.sequential["end"] == "decided"
    assert plan.study.registered["margin"] == 1.0 and plan.study.settings["until"] == "resolved"


def test_budget_limits_seeds_before_the_start_and_runs_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TINY, "norm=layernorm,rmsnorm", "until=resolved"]
    monkeypatch.setattr(run_cost, "run_seconds", lambda spec: 10.0)
    budget = 200
    plan = plan_sweep([*command, f"budget={budget}s", "seeds=3..100"])
    assert plan.study.sequential["boundaries"]["sizes"][-1] == 10  # two arms of 10 s
    run(plan, lambda job: 3.0 + (job.label == "norm=rmsnorm") * (1.0, 0.3)[job.seed % 2], seconds=budget / 8.1)
    assert plan.study.sequential["end"] == "budget" and len(plan.study.sequential["looks"]) == 2
    with pytest.raises(ConfigError, match=r"too little(.|\n)*try: budget=\d+min"):
        plan_sweep([*command, "budget=0.001s"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["until=resolved"], r"needs a limit(.|\n)*60 runs, about \d(.|\n)*try: seeds=3\.\.20"),
        (["seeds=20..3"], "the fewest and the most seeds"),
        (["seeds=3"], r"got '3'(.|\n)*try: seeds=3..20"),
        (["budget=2h"], "try: until=resolved"),
        (["until=resolved", "budget=soon"], "expected a time in s, min, h or d"),
        (["seeds=3..4", "seed=1,2,3,4,5"], r"first look needs them all"),
        (["seeds=3..9", "design=halving"], "compares its survivors"),
        (["seeds=3..9", "margin=-1"], r"margin(.|\n)*try: margin=0.005nats"),
    ],
)
def test_invalid_sequential_study_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(AblatioError, match=message):
        plan_sweep([*TINY, ARMS, *overrides])


def test_proposed_command_is_valid_and_its_plan_is_told() -> None:
    plan = plan_sweep([*TINY, ARMS, "until=resolved", "seeds=3..20", "seed=5,6"])
    assert plan.study.seeds[:4] == [5, 6, 7, 8] and {job.seed for job in plan.jobs} == {5, 6, 7}
    assert plan.study.baseline == {"norm": "layernorm"}
    said = " ".join(sentences(plan, []))
    assert "at most 60 runs" in said and "Looks at n = 3, 4, 5" in said and "is resolved, or hopeless" in said


def test_tuning_comes_before_the_looks_with_a_seed_of_its_own() -> None:
    plan = plan_sweep([*TINY, "norm=layernorm,rmsnorm", "seeds=3..6", "tune=optimizer.lr", "trials=3"])
    assert {job.role for job in plan.jobs} == {"trial"} and {job.seed for job in plan.jobs} == {7}
    results = run(plan, noisy)
    assert plan.study.trial_seed == 7 and plan.study.tuned.keys() == {"norm=layernorm", "norm=rmsnorm"}
    assert len(results) > 6 and plan.study.sequential["looks"]


def on_disk(folder: Path, overrides: list[str], loss: Any) -> Study:
    """Run a plan with made-up losses and write what a sweep would have written."""
    from ablatio.storage.atomic_write import write_json
    from ablatio.sweep.study import run_folder

    plan = plan_sweep(overrides)
    plan.study.overrides = overrides
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    known: dict[str, Job] = {}
    for name, summary in run(plan, loss, known=known).items():
        write_job(folder, known[name])
        run_folder(folder, name).mkdir(parents=True, exist_ok=True)
        write_json(run_folder(folder, name) / "summary.json", summary)
    plan.study.write(folder)
    return plan.study


def test_tuned_study_takes_more_seeds_without_tuning_again(tmp_path: Path) -> None:
    base = [*TINY, "norm=layernorm,rmsnorm", "tune=optimizer.lr", "trials=3", f"out={tmp_path}", "name=study"]
    before = on_disk(tmp_path / "study", [*base, "seed=1,2"], noisy)
    assert before.trial_seed == trial_seed((1, 2)) == 3
    with pytest.raises(ConfigError, match=r"3 is the seed of this study's trials(.|\n)*try: seed=1,2,4"):
        plan_sweep([*base, "seed=1,2,3"])
    plan = plan_sweep([*base, "seed=1,2,4"])
    known = {job.id for job in jobs_of(tmp_path / "study")}
    assert known <= {job.id for job in plan.jobs} and {j.id for j in plan.jobs if j.role == "trial"} <= known
    results = {i: json.loads((tmp_path / f"study/runs/{i}/summary.json").read_text()) for i in known}
    new = plan.more(results)
    assert {(job.seed, job.role) for job in new} == {(4, "run")} and plan.study.tuned == before.tuned
    assert all(f"optimizer.lr={float(before.tuned[job.label]['optimizer.lr']):g}" in job.overrides for job in new)
    (deviation,) = plan.study.deviations
    assert deviation["seeds"] == [1, 2] and deviation["added"] == [4]


def test_seeds_added_after_results_are_named_and_before_them_are_not(tmp_path: Path) -> None:
    base = [*TINY, "norm=layernorm,rmsnorm", f"out={tmp_path}", "name=study"]
    unseen = plan_sweep([*base, "seed=1,2"])
    unseen.study.overrides = [*base, "seed=1,2"]
    (tmp_path / "study").mkdir()
    unseen.study.write(tmp_path / "study")
    assert plan_sweep([*base, "seed=1,2,3"]).study.deviations == []
    on_disk(tmp_path / "study", [*base, "seed=1,2"], noisy)
    assert plan_sweep([*base, "seed=1,2"]).study.deviations == []
    on_disk(tmp_path / "study", [*base, "seed=1,2,3"], noisy)
    again = plan_sweep([*base, "seed=1,2,3"]).study  # a repeated command adds nothing
    assert [d["added"] for d in again.deviations] == [[3]]
    found = find(read_table([tmp_path / "study"]))
    assert "Seeds 3 were added when results of seeds 1, 2 were there; p is not corrected" in "\n".join(found.said())
    assert "种子 3 是在种子 1、2 已有结果之后追加的" in "\n".join(found.said("zh"))
    with pytest.raises(UserError, match="plans its looks before the first one"):
        plan_sweep([*base, "seed=1,2,3", "seeds=3..9"])


@pytest.mark.parametrize("design", [["design=halving", "design.runs=9"], ["design=tpe", "design.trials=8"]])
def test_search_keeps_its_baseline_to_the_end(design: list[str]) -> None:
    """The baseline has the worst trials, and still runs with every seed beside the survivors."""
    space = ["norm=rmsnorm,layernorm,dyt", "optimizer.lr=0.001,0.002,0.004", "baseline=dyt,optimizer.lr=0.001"]
    plan = plan_sweep([*TINY, *space, *design, "design.survivors=1", "seed=1,2"])
    jobs: dict[str, Job] = {}
    run(plan, lambda job: 3.0 + (job.arm["norm"] == "dyt"), known=jobs)
    finals = sorted((j.label, j.seed) for j in jobs.values() if j.role == "run")
    assert [label for label, _ in finals].count("norm=dyt optimizer.lr=0.001") == 2 and len(finals) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=1"], ["With one seed no difference can be tested"]),
        (
            ["seed=1,2"],
            ["81 sd", "Warning: few settings make such a difference", "seeds would show 2 sd", "until=resolved"],
        ),
        (["seed=range(1,13)"], ["8 arms with 12 seeds show a difference of 1.2 sd in 80 % of studies"]),
    ],
)
def test_hopeless_study_is_told_before_it_starts(overrides: list[str], words: list[str]) -> None:
    arms = "optimizer.lr=" + ",".join(f"0.00{i}" for i in range(1, 9))
    said = " ".join(sentences(plan_sweep([*TINY, arms, *overrides]), []))
    assert all(word in said for word in words), said
    assert ("Warning" in said) == (overrides == ["seed=1,2"])
