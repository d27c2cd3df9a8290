"""match=: arms get the baseline's parameters, FLOPs or time within 1 %, and the plan states the residual."""

import pytest

from ablatio.errors import ConfigError
from ablatio.model.builder import ModelBuilder
from ablatio.model.on_meta import on_meta
from ablatio.report.terminal.plan_table import estimate_arms
from ablatio.sweep.durations import duration
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.size_matching import CLOSE, nearest
from ablatio.training.estimate import estimate
from ablatio.training.run_spec import RunSpec, vocabulary_of

SIZE = ["model.d_model=64", "model.n_layers=2", "model.max_len=32", "tokenizer=bytes"]


def true_parameters(config) -> int:
    with on_meta():
        return sum(p.numel() for p in ModelBuilder(config, vocabulary_of(config)).model().parameters())


def test_match_params_equals_baseline() -> None:
    """Oracle: numel of the model built from each job's config."""
    plan = plan_sweep(
        [*SIZE, "mlp=dense,moe", "activation=gelu,swiglu", "match=params", "baseline=mlp=dense,activation=gelu"]
    )
    counts = {job.label: true_parameters(job.config) for job in plan.jobs}
    target = counts["mlp=dense activation=gelu"]
    for label, count in counts.items():
        assert abs(count / target - 1) < CLOSE
        assert plan.study.matched[label]["residual"] == pytest.approx(count / target - 1)
    assert plan.study.matched["mlp=moe activation=gelu"]["set"]["model.d_ff"]  # 8 experts must be narrower
    assert plan.study.matched["mlp=dense activation=gelu"]["set"] == {}


@pytest.mark.parametrize("resize", ["model.d_ff", "train.steps", "model.n_layers"])
def test_match_flops_equals_baseline(resize: str) -> None:
    """Oracle: the FLOP estimate that a run writes into its summary."""
    plan = plan_sweep(
        [*SIZE, "attention=mha,mqa", "model.n_layers=8", "match=flops", f"resize={resize}", "match=flops"]
    )
    found = ((estimate(RunSpec(j.config)), j.config["train"]["steps"]) for j in plan.jobs)
    first, other = (sizes["train_flops_per_token"] * steps for sizes, steps in found)
    residual = plan.study.matched["attention=mqa"]["residual"]
    assert other / first - 1 == pytest.approx(residual, abs=1e-9)
    assert abs(residual) < (0.06 if resize == "model.n_layers" else CLOSE)  # whole layers match only coarsely


def trained_parameters(config) -> int:
    from ablatio.model.peft.apply import tune

    model = ModelBuilder(config, vocabulary_of(config)).model()
    return tune(model, config, 0).trainable


def test_match_trainable_equals_baseline() -> None:
    """Oracle: number of trainable parameters of the model built from each job's config on the CPU (not on meta)."""
    asked = [*SIZE, "peft=lora,prefix,p_tuning_v2,prompt,adapter", "peft.hidden=4", "match=trainable", "baseline=lora"]
    plan = plan_sweep(asked)
    target = 2 * 2 * 2 * 64 * 8  # layers x (q, v) x (A, B) x width x rank
    sizes = {"prefix": "tokens", "p_tuning_v2": "tokens", "prompt": "tokens", "adapter": "size"}
    for job in plan.jobs:
        matched, peft = plan.study.matched[job.label], job.config["peft"]["name"]
        assert trained_parameters(job.config) == matched["value"] == pytest.approx(target, rel=0.07)
        assert matched["residual"] == pytest.approx(matched["value"] / target - 1)
        assert list(matched["set"]) == ([f"peft.{sizes[peft]}"] if peft in sizes else [])


def test_match_trainable_adapts_lora_rank_to_targets() -> None:
    """Half as many adapted matrices get twice the rank; a baseline's value may be a list."""
    axis = "peft.targets=[q_proj],[q_proj,v_proj],[q_proj,k_proj,v_proj,o_proj]"
    plan = plan_sweep([*SIZE, "peft=lora", axis, "match=trainable", "baseline=peft.targets=[q_proj,v_proj]"])
    assert [job.config["peft"]["rank"] for job in plan.jobs] == [16, 8, 4]
    assert plan.study.baseline == {"peft.targets": "[q_proj,v_proj]"}


@pytest.mark.parametrize(
    "words, what",
    [
        (["peft=lora,lntuning"], "lntuning has no knob that changes"),
        (["peft=lora,adapter", "resize=model.d_ff"], "trainable parameters are set by a peft method"),
    ],
)
def test_match_trainable_rejects_unmatchable_arms(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        plan_sweep([*SIZE, *words, "match=trainable"])


def test_match_time_adjusts_steps_to_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ablatio.training import estimate

    def seconds(spec: RunSpec, times: int = 3) -> float:
        return 0.5 if spec.config["position"]["name"] == "rope" else 0.4

    monkeypatch.setattr(estimate, "seconds_per_step", seconds)
    plan = plan_sweep([*SIZE, "position=rope,alibi,none", "train.steps=1000", "match=time"])
    assert [job.config["train"]["steps"] for job in plan.jobs] == [1000, 1250, 1250]
    assert plan.study.matched["position=alibi"]["residual"] == pytest.approx(0)


def test_gated_activation_is_matched_by_default() -> None:
    asked = [*SIZE, "activation=gelu,swiglu"]
    gelu, swiglu = (true_parameters(job.config) for job in plan_sweep(asked).jobs)
    assert abs(swiglu / gelu - 1) < CLOSE
    gelu, swiglu = (true_parameters(job.config) for job in plan_sweep([*asked, "match=none"]).jobs)
    assert swiglu > 1.2 * gelu


def test_nearest_finds_the_closest_size() -> None:
    for target in (1, 7, 999, 12345, 10**6):
        size, value = nearest(lambda n: 100.0 + 37 * n, 50, target)
        best = min(range(1, 30000), key=lambda n: abs(100 + 37 * n - target))
        assert size == best and value == 100 + 37 * size


def test_estimate_arms_measures_time_and_parameters() -> None:
    plan = plan_sweep([*SIZE, "mlp=dense,moe", "train.steps=10", "data.val_tokens=64", "trainer.threads=1"])
    dense, moe = estimate_arms(plan.cells, {})
    assert dense.seconds and moe.seconds and 0.001 < dense.seconds < 60
    assert moe.parameters and dense.parameters and moe.parameters > 2 * dense.parameters
    assert dense.parameters == true_parameters(plan.jobs[0].config)
    assert (duration(95), duration(150), duration(7200), duration(9e5)) == ("95 s", "2.5 min", "2 h", "10.4 d")
