"""What planning costs does not grow with the arms: Hydra composes their frames, and conf folders are listed once."""

from collections.abc import Callable
from typing import Any

import pytest

from ablatio.config import compose, yaml_files
from ablatio.config.compose import compose_run
from ablatio.config.schema import SWEEP
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.recipes.plan import compose_stages, sorted_for
from ablatio.sweep.recipes.schema import find
from ablatio.sweep.study import run_of

KL = "stages.ppo.alignment.kl_coef"
SWEEPS = {
    "settings": (["seed=1,2"], "optimizer.lr=1e-3,2e-3", "optimizer.lr=1e-3,2e-3,3e-3,4e-3"),
    "a value with a backslash": (
        ["source=text", r"source.separator='\n\n'", "seed=1,2"],
        "norm=layernorm,rmsnorm",
        "norm=layernorm,rmsnorm,dyt,gemma_rmsnorm",
    ),
    "recipes": (["recipe=instructgpt", "seed=1,2"], f"{KL}=0.1,0.2", f"{KL}=0.1,0.2,0.3,0.4"),
}


def calls_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[object]:
    calls: list[object] = []
    real: Callable[..., Any] = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: (calls.append(given), real(*given))[1])
    return calls


@pytest.mark.parametrize("sweep", SWEEPS)
def test_twice_the_arms_are_composed_with_the_same_frames(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, few, many = SWEEPS[sweep]
    composed = calls_of(monkeypatch, compose, "try_compose")
    arms = len(plan_sweep([*fixed, few]).cells)
    first = len(composed)
    assert len(plan_sweep([*fixed, many]).cells) == 2 * arms
    assert len(composed) - first == first > 0


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_conf_folders_are_listed_once(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of presets were looked up with a listing each: a third of a second of each plan."""
    fixed, few, many = SWEEPS[sweep]
    listed = calls_of(monkeypatch, yaml_files, "_list_files")
    for number, arms in enumerate((few, many), 1):
        plan_sweep([*fixed, arms])
        assert len(listed) == number


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kl", ["0.1", "0.2"])
def test_arms_of_a_recipe_are_what_hydra_composes(kl: str, seed: int) -> None:
    """Oracle: Hydra composes each stage by itself."""
    shared = ["size=tiny", "stages.reward.optimizer=lion"]
    jobs = plan_sweep(["recipe=instructgpt", *shared, f"{KL}=0.1,0.2", "seed=1,2"]).jobs
    ours = {job.stage: job for job in jobs if job.seed == seed and job.arm.get(KL, kl) == kl}
    recipe = find("instructgpt")
    said = sorted_for(recipe, [*shared, f"{KL}={kl}", f"seed={seed}"])
    alone = compose_stages(
        recipe,
        said,
        places=lambda stage: [f"out={said.place['out']}"],
        path_of=lambda stage, made: run_of(ours[stage].id),
        compose=compose_run,
    )
    assert [stage.name for stage in alone] == [*ours] == ["sft", "reward", "ppo"]
    for stage in alone:
        assert ours[stage.name].config == {key: value for key, value in stage.composed.public.items() if key != SWEEP}
