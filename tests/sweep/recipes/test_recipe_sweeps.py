"""Sweeps of recipes: shared stages run once, and each arm gives the results of the recipe run by itself."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from helpers.fakes import engine, job, states
from helpers.runs import KL, SMALL_RECIPE, Finished, ablatio, metrics

from ablatio.config import yaml_files
from ablatio.errors import AblatioError, UserError
from ablatio.registry.registry import Distribution
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.study import Job, Study, jobs_of, run_folder


def plan(*overrides: str) -> dict[str, list[Job]]:
    """The jobs of a sweep by stage."""
    found: dict[str, list[Job]] = {}
    for one in plan_sweep(["recipe=instructgpt", *overrides]).jobs:
        found.setdefault(one.stage, []).append(one)
    return found


def test_shared_stages_are_one_job_per_seed() -> None:
    found = plan(KL, "seed=1,2")
    assert {stage: len(jobs) for stage, jobs in found.items()} == {"sft": 2, "reward": 2, "ppo": 4}
    sft, reward, ppo = (jobs[0] for jobs in found.values())
    assert (sft.takes, reward.takes, ppo.takes) == ((), (sft.id,), (reward.id, sft.id))
    assert ppo.config["model"]["path"] == f"runs/{sft.id}" and ppo.config["reward"]["path"] == f"runs/{reward.id}"
    assert [j.role for j in (sft, reward, ppo)] == ["stage", "stage", "run"] and sft.title == "sft seed=1"
    assert sft.arm == reward.arm == {} and ppo.arm == {"stages.ppo.alignment.kl_coef": "0.05"}
    assert [j.seed for j in found["ppo"]] == [1, 1, 2, 2]


def test_axis_of_an_early_stage_multiplies_dependent_stages() -> None:
    found = plan("stages.reward.task.margin=0,0.5", "stages.sft.train.steps=20")
    assert {stage: len(jobs) for stage, jobs in found.items()} == {"sft": 1, "reward": 2, "ppo": 2}
    found = plan("norm=rmsnorm,layernorm")
    assert {len(jobs) for jobs in found.values()} == {2}
    assert found["ppo"][1].config["norm"]["name"] == "layernorm"


def test_stage_with_a_fixed_seed_runs_once() -> None:
    found = plan("seed=1,2,3", "stages.sft.seed=7")
    assert [len(jobs) for jobs in found.values()] == [1, 3, 3]
    assert found["sft"][0].seed == 7 and {j.takes[-1] for j in found["ppo"]} == {found["sft"][0].id}


def test_configs_of_further_seeds_equal_separately_composed_ones() -> None:
    """Only the first seed is composed by Hydra; the configs of others must equal those of a sweep of that seed."""
    both, alone = plan(KL, "seed=1,2"), plan(KL, "seed=2")
    for stage, jobs in alone.items():
        assert [j for j in both[stage] if j.config["seed"] == 2] == jobs


def test_axis_applies_only_to_stages_that_have_it() -> None:
    found = plan("stages.ppo.alignment=ppo,grpo", "stages.ppo.alignment.vf_coef=0.1,0.2")
    labels = [sorted(j.arm.values()) for j in found["ppo"]]
    assert labels == [["0.1", "ppo"], ["0.2", "ppo"], ["grpo"]] and len(found["reward"]) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.pppo.seed=1,2"], "no stage `pppo`; did you mean ppo"),
        (["stages.ppo.alignment.kl_coeff=0.1,0.2"], "kl_coeff"),
        (["stages.ppo.alignment=ppo,gppo"], "there is no `gppo`"),
        (
            ["stages.ppo.alignment=grpo,rloo", "stages.ppo.alignment.vf_coef=1,2"],
            "no arm has it; it is a knob of alignment=",
        ),
        ([KL, "tune=optimizer.lr"], "an arm of this sweep is a recipe"),
        ([KL, "match=params"], "an arm of this sweep is a recipe"),
        ([KL, "design=tpe"], "an arm of this sweep is a recipe"),
        (["task=sft,policy"], "each has its own task"),
    ],
)
def test_invalid_recipe_sweeps_are_rejected_before_the_first_stage(overrides: list[str], message: str) -> None:
    with pytest.raises(AblatioError) as caught:
        plan(*overrides)
    assert message in str(caught.value)


STUDY = """\
# @package _global_
# How dear should it be to leave the reference?
sweep:
  question: Does the price of leaving the reference matter?
  recipe: instructgpt
  overrides: [stages.sft.train.steps=20, stages.ppo.alignment=ppo, stages.ppo.alignment.vf_coef=0.2, size=tiny]
  baseline: stages.ppo.alignment.kl_coef=0.05
  axes:
    stages.ppo.alignment.kl_coef: [0.05, 0.2]
    seed: [1, 2]
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An additional study file, as if it were in sweeps/."""
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    file = yaml_files.File(yaml_files.SWEEP, "mine", path, Distribution("mine", "1"))
    real = yaml_files.files
    monkeypatch.setattr(yaml_files, "files", lambda: {**real(), yaml_files.SWEEP: {"mine": file}})
    return path


def test_study_file_can_use_a_recipe(study: Path) -> None:
    found = plan_sweep(["+sweep=mine"])
    assert len(found.jobs) == 8 and found.study.baseline == {"stages.ppo.alignment.kl_coef": "0.05"}
    assert found.jobs[0].config["train"]["steps"] == 20 and "+sweep=mine" not in found.jobs[0].overrides
    found = plan_sweep(["+sweep=mine", "stages.sft.train.steps=3", "stages.ppo.alignment=a2c", "seed=1"])
    assert found.jobs[0].config["train"]["steps"] == 3 and found.jobs[-1].config["alignment"]["name"] == "a2c"


def test_recipe_study_rejects_settings_outside_sweep(study: Path) -> None:
    study.write_text(STUDY + "train: {steps: 3}\n")
    with pytest.raises(UserError, match=r"`train:` stands beside `sweep:`"):
        plan_sweep(["+sweep=mine"])


def test_job_starts_after_its_inputs_are_done(tmp_path: Path) -> None:
    last, middle = job("c", takes=("b",)), job("b", takes=("a",))
    made = engine(tmp_path, last, middle, job("a", "once:nap"), knobs={"workers": 3})
    made.run()
    order = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    events = [(e["job"], e["state"]) for e in order if e["state"] in ("claimed", "done")]
    assert events == [(name, state) for name in "abc" for state in ("claimed", "done")]


def test_job_with_failed_input_waits_for_its_retry(tmp_path: Path) -> None:
    jobs = job("a", "once:raise"), job("b", takes=("a",)), job("c")
    made = engine(tmp_path, *jobs)
    assert [r.job.id for r in made.run()] == ["a", "c"]
    assert states(made) == {"a": "failed", "b": "planned", "c": "done"}
    again = engine(tmp_path, *jobs, retry="failed")
    again.run()
    assert set(states(again).values()) == {"done"}


def train(out: Path, *overrides: str, kill_when: Path | None = None) -> Finished:
    return ablatio(["train", *SMALL_RECIPE, f"out={out}", *overrides], out / "log", kill_when)


SWEEP = ("-m", KL, "seed=1,2", "workers=1")


def metrics_by_title(study: Path) -> dict[str, list[dict[str, str]]]:
    """Metrics of each run by job title."""
    return {one.title: metrics(run_folder(study, one.id)) for one in jobs_of(study)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted sweep."""
    out = tmp_path_factory.mktemp("recipes")
    ended = train(out, *SWEEP)
    assert ended.code == 0, ended.err
    assert "2 arms of 3 stages with 2 seeds: 8 runs; 12 if arms shared none; about " in ended.out
    assert "of computing on one core" in " ".join(ended.out.split())
    return out / "r"


def test_arm_gives_the_results_of_its_recipe(whole: Path, tmp_path: Path) -> None:
    """Oracle: the recipe with the arm's settings, run without a sweep."""
    ended = train(tmp_path, "stages.ppo.alignment.kl_coef=0.2", "seed=2")
    assert ended.code == 0, ended.err
    alone = [metrics(tmp_path / "r" / name) for name in ("01-sft", "02-reward", "03-ppo")]
    arm = metrics_by_title(whole)
    titles = "sft seed=2", "reward seed=2", "ppo stages.ppo.alignment.kl_coef=0.2 seed=2"
    assert [arm[title] for title in titles] == alone
    assert arm[titles[2]] != arm["ppo stages.ppo.alignment.kl_coef=0.05 seed=2"]


def test_arms_start_from_the_shared_stage(whole: Path) -> None:
    origins = Counter()
    for one in jobs_of(whole):
        manifest = json.loads((run_folder(whole, one.id) / "manifest.json").read_text())
        origins[manifest.get("origin", {}).get("origin")] += 1
    sft = [str(run_folder(whole, one.id)) for one in jobs_of(whole) if one.stage == "sft"]
    assert origins == {None: 2, **dict.fromkeys(sft, 3)}  # the reward model, and ppo at two KL coefficients


@pytest.mark.long  # of one recipe: test_recipes.py
@pytest.mark.faults
@pytest.mark.parametrize("stage, file", [("sft", "summary.json"), ("reward", "checkpoints/step-00000002.json"),
                                         ("ppo", "checkpoints/step-00000002.json")])  # fmt: skip
def test_killed_recipe_sweep_resumes_between_and_within_stages(
    whole: Path, tmp_path: Path, stage: str, file: str
) -> None:
    first = next(one.id for one in jobs_of(whole) if one.stage == stage and one.seed == 1)
    killed = train(tmp_path, *SWEEP, "table=0", kill_when=tmp_path / "r" / "runs" / first / file)
    assert killed.code == -signal.SIGKILL
    again = ablatio(["resume", str(tmp_path / "r")], tmp_path / "log")
    assert again.code == 0, again.err
    assert metrics_by_title(tmp_path / "r") == metrics_by_title(whole)
    done = [json.loads(line) for line in (tmp_path / "r" / "ledger.jsonl").read_text().splitlines()]
    assert set(Counter(e["job"] for e in done if e["state"] == "done").values()) == {1}


def test_finished_sweep_can_be_extended_without_reruns(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("runs/*/metrics.csv")}
    ended = train(whole.parent, "-m", f"{KL},0.4", "seed=1,2", "workers=1")
    assert ended.code == 0, ended.err
    assert "6 of 6 done" in ended.out and len(list(jobs_of(whole))) == len(before) + 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(Study.read(whole).stages) == ["sft", "reward", "ppo"]


def test_failed_stage_is_reported_and_can_be_retried(tmp_path: Path) -> None:
    """The first stage of one arm diverges; the other arm is completed."""
    ended = train(tmp_path, "-m", "stages.sft.optimizer.lr=1e-3,1e30", "workers=1", "table=0")
    assert ended.code == 3
    assert "1 of 6 runs failed, and 2 that depend on them were not started" in ended.err
    again = ablatio(["resume", str(tmp_path / "r"), "retry=failed"], tmp_path / "log")
    assert again.code == 3 and "1 of 6 runs failed" in again.err
