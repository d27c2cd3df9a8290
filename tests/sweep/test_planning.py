"""Planning: axes that not all arms have, duplicate arms, rejected arms, too many arms, settings of the sweep."""

from pathlib import Path

import pytest
import yaml

from ablatio.config.yaml_files import SWEEP, options_of
from ablatio.errors import AblatioError, ConfigError, UserError
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.request import read
from ablatio.sweep.study import read_job, write_job


def labels(*overrides: str) -> list[str]:
    return [cell.label for cell in plan_sweep(overrides).cells]


def test_axis_applies_only_to_arms_that_have_it() -> None:
    found = labels("norm=layernorm,dyt", "norm.eps=1e-3,1e-4")
    assert found == ["norm=layernorm norm.eps=0.001", "norm=layernorm norm.eps=0.0001", "norm=dyt"]
    assert labels("norm=layernorm,dyt", "norm.eps=1e-3") == ["norm=layernorm", "norm=dyt"]  # with one value too
    assert labels("stabilizer=[clip],[skip_step]", "stabilizer.clip.max_norm=1.0,2.0")[2:] == ["stabilizer=[skip_step]"]


def test_study_baseline_is_dropped_with_its_axis() -> None:
    assert plan_sweep(["+sweep=position_extrapolation"]).study.baseline == {"position": "rope"}
    assert plan_sweep(["+sweep=position_extrapolation", "position=learned"]).study.baseline is None
    assert plan_sweep(["+sweep=glu_variants", "seed=1"]).study.matched["activation=swiglu"]["what"] == "params"


def test_equivalent_arms_are_one_job() -> None:
    plan = plan_sweep(["optimizer.lr=0.01,1e-2,0.02", "seed=1,2"])
    assert len(plan.jobs) == 4 and plan.study.axes[0].values == ("0.01", "0.02")
    plan = plan_sweep(["data.length=null,256", "size=small"])
    assert [cell.label for cell in plan.cells] == ["data.length=null", "data.length=256"]
    plan = plan_sweep(
        ["seeds.init=7", "norm=rmsnorm,layernorm", "norm.affine=true,false", "optimizer.eps=1e-8,0.00000001"]
    )
    assert len(plan.cells) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm=layernorm,dyt", "norm.epps=1,2"], "did you mean eps"),
        (["position=alibi", "position.base=1,2"], "no arm has it; it is a knob of position="),
        (["norm=layernorm,dyt", "norm.epps=1e-3"], "norm.epps: no arm has it: there is no `epps`; did you mean eps?"),
        (["norm=layernorm,dyt", "norm.layernorm.eps=1e-3"], "norm.layernorm.eps: no arm has it"),
        (["position=alibi,none", "position.base=500"], "no arm has it; it is a knob of position="),
        (["stabilizer=[clip],[skip_step]", "stabilizer.spike_rewind.max_rewinds=3"], "spike_rewind is not chosen"),
        (["design=random", "optimizer.lr=log(0.1,1)", "norm=layernorm,dyt", "norm.epps=1e-3"], "did you mean eps?"),
        (["recipe=instructgpt", "stages.ppo.alignment=ppo,a2c", "stages.ppo.alignment.foo=1"], "there is no `foo`"),
        (["norm=layernorm,rmsnrom"], "did you mean rmsnorm"),
        (["norm=layernorm,rmsnorm", "norm.eps=abc"], "expected float"),
        (["norm=layernorm,rmsnorm", "plan=abc", "trails=3"], "plan: expected "),
        (["norm=layernorm,rmsnorm", "design=ful"], "did you mean full"),
        (["norm=layernorm,rmsnorm", "design.runs=3"], "there is no `runs`"),
        (["norm=layernorm,rmsnorm", "baseline=rmsnrm"], "did you mean rmsnorm"),
        (["norm=layernorm,rmsnorm", "norm=dyt"], "drop norm="),
        (["optimizer.lr=interval(0.1,1)"], "design=full needs single values"),
        (["optimizer.lr=0.1,0.2", "tune=optimizer.lr"], "optimizer.lr is an axis"),
        (["norm=layernorm,rmsnorm", "seed=1,x"], "seed: expected int, got 'x'"),
        (["norm=layernorm,rmsnorm", "position=rope,alibi,none", "design=paired"], "norm has 2, position has 3"),
        (
            ["norm=layernorm,rmsnorm", "match=params", "resize=train.steps"],
            "does not change what match=params measures",
        ),
    ],
)
def test_invalid_override_is_rejected_at_planning(overrides: list[str], message: str) -> None:
    with pytest.raises(AblatioError) as caught:
        plan_sweep(overrides)
    assert message in str(caught.value)


def test_all_invalid_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_sweep(["norm=rmsnrom,dyt", "plan=abc", "design=ful", "workers=0"])
    assert {p.where for p in caught.value.problems} == {"norm", "plan", "design", "workers"}


def test_arm_that_violates_a_rule_is_refused_and_others_run() -> None:
    plan = plan_sweep(["position=rope,alibi", "model.d_head=3,4"])
    assert [cell.label for cell in plan.cells][1:] == ["position=alibi model.d_head=3", "position=alibi model.d_head=4"]
    (refused,) = plan.study.refused
    assert refused.arm == {"position": "rope", "model.d_head": "3"} and "rope rotates pairs" in refused.why
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*rope rotates pairs.*model.d_head=5"):
        plan_sweep(["position=rope", "model.d_head=3,5"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=range(1,1000000001)"],
        [f"train.{k}={','.join(map(str, range(1, 1001)))}" for k in ("steps", "batch_size", "accumulate")],
        ["norm=layernorm,rmsnorm", "seed=range(1,1000000001)"],
    ],
)
def test_huge_designs_are_rejected_without_enumeration(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"at most 10,000 can be planned"):
        plan_sweep(overrides)
    if len(overrides) == 3:
        assert len(plan_sweep([*overrides, "design=random", "design.runs=5"]).cells) == 5


def test_sweep_settings_do_not_change_jobs() -> None:
    plain = plan_sweep(["norm=layernorm,rmsnorm", "seed=1,2"])
    asked = ["design=one_at_a_time", "baseline=rmsnorm", "plan=0.01", "workers=3", "retry=failed", "join=true"]
    with_settings = plan_sweep(["norm=layernorm,rmsnorm", "seed=1,2", *asked])
    assert {job.id for job in plain.jobs} == {job.id for job in with_settings.jobs}
    assert with_settings.study.baseline == {"norm": "rmsnorm"} and with_settings.study.settings["plan"] == 0.01
    assert not {"sweep", "design", "plan"} & with_settings.jobs[0].config.keys()


def test_job_id_depends_on_source_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ablatio.registry.registry import REGISTRIES

    ids = [job.id for job in plan_sweep(["norm=layernorm,rmsnorm"]).jobs]
    entries = REGISTRIES["norm"].entries
    monkeypatch.setitem(entries, "rmsnorm", replace(entries["rmsnorm"], digest="changed"))
    again = [job.id for job in plan_sweep(["norm=layernorm,rmsnorm"]).jobs]
    assert ids[0] == again[0] and ids[1] != again[1]


def test_job_overrides_reproduce_its_config(tmp_path: Path) -> None:
    from ablatio.config.compose import compose_run
    from ablatio.training.run_folder import run_id

    plan = plan_sweep(["+sweep=glu_variants", "activation=gelu,swiglu", "seed=4,5", "name=x", "norm.eps=0.01"])
    for job in plan.jobs:
        assert run_id(compose_run(job.overrides).config) == run_id(job.config) and job.config["seed"] == job.seed
    (tmp_path / "jobs").mkdir()
    write_job(tmp_path, plan.jobs[0])
    assert read_job(tmp_path, plan.jobs[0].id) == plan.jobs[0]


def test_bits_per_byte_are_registered_where_tokenizers_differ() -> None:
    same, other = (
        plan_sweep(["size=tiny", axis, "seed=1,2"]).study.registered
        for axis in ("norm=layernorm,rmsnorm", "tokenizer=bytes,bpe")
    )
    assert (same["metric"], same["unit"]) == ("val/loss", "nats")
    assert (other["metric"], other["unit"]) == ("val/bpb", "bits/byte")


BASELINES = [name for name, file in options_of(SWEEP).items() if file.read()["sweep"].get("baseline")]


@pytest.mark.parametrize("name", BASELINES)
def test_the_baseline_of_a_shipped_study_is_one_of_its_arms(name: str) -> None:
    found = read([f"+sweep={name}"])
    assert found.baseline and found.baseline.keys() == {axis.key for axis in found.axes}


@pytest.mark.parametrize(
    "text", ["norm=dyt,mlp=dense", "norm=dyt, mlp=dense", "norm=dyt mlp=dense", " norm=dyt,\n  mlp=dense\n"]
)
def test_a_baseline_may_be_spread_over_lines(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = {"axes": {"norm": ["rmsnorm", "dyt"], "mlp": ["moe", "dense"]}, "baseline": text}
    Path("s.yaml").write_text(yaml.safe_dump({"sweep": study}))
    assert read(["+sweep=./s.yaml"]).baseline == {"norm": "dyt", "mlp": "dense"}
    # A command that gives an axis other values leaves the file's baseline out; a file that names no arm is wrong.
    assert read(["+sweep=./s.yaml", "norm=rmsnorm,layernorm"]).baseline is None
    Path("s.yaml").write_text(yaml.safe_dump({"sweep": {**study, "baseline": "norm=layernorm"}}))
    with pytest.raises(ConfigError, match="`norm=layernorm` is no value of this sweep"):
        plan_sweep(["+sweep=./s.yaml"])
