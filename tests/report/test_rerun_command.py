"""The rerun command of an arm or run reproduces it: the same jobs, the same numbers."""

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.config.compose import compose_run
from ablatio.report.analysis.arms import arms_of
from ablatio.report.read.table import read_table
from ablatio.report.rerun_command import line, of_arm, of_config, of_run
from ablatio.sweep.plan import Plan, plan_sweep
from ablatio.sweep.study import Job
from ablatio.training.run_folder import run_id


def all_jobs(plan: Plan) -> list[Job]:
    """All jobs of a plan, tuning included; each trial's validation loss is set to its learning rate."""
    results: dict[str, Any] = {}
    known, more = list[Job](), plan.jobs
    while more:
        known += more
        rates = {job.id: job.config["optimizer"]["lr"] for job in more}
        results |= {i: {"steps": job.config["train"]["steps"], "val/loss": rates[i]} for i, job in zip(rates, more)}  # noqa: B905
        more = plan.more(results)
    return known


@pytest.mark.parametrize(
    "overrides",
    [
        ["norm=layernorm,dyt", "norm.eps=1e-3,1e-4", "seed=3,1"],
        ["+sweep=glu_variants", "activation=gelu,swiglu", "seed=4,5", "norm.eps=0.01", "name=x"],
        ["norm=rmsnorm,layernorm", "tune=optimizer.lr", "trials=2", "seed=1,2"],
        ["stabilizer=[clip],[skip_step]", "optimizer.betas=[0.8,0.9],[0.9,0.99]", "seed=1,2"],
        ["activation=gelu,swiglu", "match=flops", "seed=1,2"],
        ["recipe=instructgpt", "stages.ppo.alignment.kl_coef=0.05,0.2", "seed=1,2"],
    ],
)
def test_arm_command_plans_the_same_jobs(overrides: list[str]) -> None:
    jobs = [job for job in all_jobs(plan_sweep(overrides)) if job.role == "run"]
    arms: dict[str, list[Job]] = {}
    for job in jobs:
        arms.setdefault(job.label, []).append(job)
    assert len(arms) > 1
    for of_one in arms.values():
        command = of_arm([of_run(job.overrides, {}, {}) for job in of_one])
        assert command.startswith("ablatio train -m ") and "name=" not in command
        again = plan_sweep(shlex.split(command)[3:])
        assert not again.adaptive and {j.id for j in again.jobs if j.role == "run"} == {j.id for j in of_one}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["norm=layernorm", "norm.eps=0.01", "position=alibi", "seed=7"],
        ["stabilizer=[clip,z_loss]", "stabilizer.clip.max_norm=2"],
        ["preset=t5", "size=tiny"],
        ["task=preference", "source=sentiment", "alignment=dpo", "peft=lora"],
        ["source=text", "source.path='a b.txt'", r"source.separator='\n\n'", "optimizer.betas=[0.8,0.9]"],
    ],
)
def test_single_run_command_is_built_from_its_config(overrides: list[str]) -> None:
    made = compose_run(overrides)
    again = compose_run(of_config(made.public))
    assert run_id(again.config) == run_id(made.config) and again.config["seed"] == made.config["seed"]


def test_config_with_unknown_part_has_no_command() -> None:
    config = {**compose_run([]).public, "norm": {"name": "gone"}}
    assert of_config(config) == ()


def test_run_command_keeps_threads_and_drops_output_location() -> None:
    overrides_of_run = ("norm=rmsnorm", "out=/tmp/x", "name=a", "seed=1")
    on = {"trainer": {"threads": 1}}, {"machine": {"device": "cpu"}}
    assert of_run(overrides_of_run, *on) == ("norm=rmsnorm", "seed=1", "trainer.threads=1")
    assert of_run((*overrides_of_run, "trainer.threads=2"), *on)[-1] == "trainer.threads=2"
    assert of_run(overrides_of_run, on[0], {"machine": {"device": "cuda"}}) == ("norm=rmsnorm", "seed=1")
    assert line([]) == "" and of_arm([(), ()]) == "" and of_run((), *on) == ()
    assert of_arm([("a=1", "seed=1"), ("a=2", "seed=2")]) == "ablatio train a=1 seed=1"


@pytest.mark.slow
def test_report_commands_reproduce_results_bit_for_bit(tmp_path: Path, text_file: Path) -> None:
    """Execute the commands exactly as printed: one of a single run and one of a whole arm."""
    settings = [s for s in TINY if not s.startswith("trainer.threads")]
    asked = ["norm=rmsnorm,layernorm", "match=params", "seed=1,2", "workers=2", "table=0", "name=s"]
    place = [f"source.path={text_file}", f"out={tmp_path}"]
    done = ablatio(["train", "-m", *settings, *asked, *place], tmp_path / "log")
    assert done.code == 0, done.err
    reported = ablatio(["report", str(tmp_path / "s")], tmp_path / "log")
    assert reported.code == 0, reported.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s/report/results.csv").read_text())))
    losses = {(row["norm"], row["seed"]): float(row["val/loss"]) for row in rows}
    words = shlex.split(rows[0]["command"])
    assert words[:2] == ["ablatio", "train"] and "trainer.threads=1" in words
    alone = ablatio([*words[1:], f"out={tmp_path}", "name=alone"], tmp_path / "log")
    assert alone.code == 0, alone.err
    assert summary(tmp_path / "alone")["val/loss"] == losses[rows[0]["norm"], rows[0]["seed"]]
    (arm, _) = arms_of(read_table([tmp_path / "s"]), "val/loss")
    words = shlex.split(arm.again)
    again = ablatio([*words[1:], f"out={tmp_path}", "name=again", "table=0"], tmp_path / "log")
    assert again.code == 0, again.err
    (same,) = arms_of(read_table([tmp_path / "again"]), "val/loss")
    assert same.values == arm.values and len(same.values) == 2
