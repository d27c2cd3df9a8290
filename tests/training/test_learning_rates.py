"""Learning rates and schedules by role, for every optimizer; the plateau schedule resumes exactly."""

from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics

from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.parameter_roles import apply_rates, describe, groups_by_role
from ablatio.registry.kinds import optimizers
from ablatio.registry.registry import REGISTRIES
from ablatio.training.learning_rates import LearningRates, factor_of

SMALL = ["size=tiny", "tokenizer=bytes", "model.tied=false", "schedule=constant"]


def rates_of(overrides: list[str], step: int) -> dict[str, tuple[str, float]]:
    """The role and the learning rate of each parameter at a step of 100."""
    config = compose_run([*SMALL, *overrides]).config
    model, rates = build_model(config, 257), LearningRates(config, None)
    choice = PartChoice.of(config["optimizer"])
    made = optimizers.build(choice.name, choice.knobs, groups=groups_by_role(model, rates.rate))
    apply_rates(made, model, rates.rate)
    rates.bind(made, model)
    rates.set(made, step, 100, [])
    found = {id(p): float(group["lr"]) for group in made.param_groups for p in group["params"]}
    return {info.name: (info.role, found[id(p)]) for p, info in describe(model)}


@pytest.mark.parametrize("name", [e.name for e in REGISTRIES["optimizer"]])
def test_each_role_gets_its_rate_factor_and_schedule(name: str) -> None:
    optimizer = f"optimizer={name}"
    knobs = {"warmup": 0.05, "final": 0.1}
    own = factor_of(PartChoice("cosine", knobs))
    settings = ["roles.embedding_rate=0.25", "roles.vector_rate=3", "roles.head_schedule=cosine"]
    for step in (2, 60):
        plain, changed = rates_of([optimizer], step), rates_of([optimizer, *settings], step)
        factors = {"embedding": 0.25, "vector": 3.0, "matrix": 1.0}
        factors["head"] = own(step, 100, []) / factor_of(PartChoice("constant", {}))(step, 100, [])
        assert {role for role, _ in plain.values()} == factors.keys()
        for parameter, (role, rate) in plain.items():
            assert changed[parameter] == (role, pytest.approx(rate * factors[role], rel=1e-9)), parameter


def test_role_schedule_inherits_shared_knobs() -> None:
    """`warmup` comes from the run's schedule; `final`, which `constant` does not have, keeps its default."""
    rates = rates_of(["schedule.warmup=0.5", "roles.head_schedule=cosine"], 24)
    heads = {rate for role, rate in rates.values() if role == "head"}
    others = {rate for role, rate in rates.values() if role != "head"}
    assert heads == others and max(heads) == pytest.approx(0.5 * max(r for _, r in rates_of([], 99).values()))


PLATEAU = ["schedule=plateau", "schedule.patience=0", "schedule.gain=0.9", "schedule.warmup=0", "train.val_every=2"]


def test_plateau_schedule_lowers_the_rate_and_resumes_exactly(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *PLATEAU, "roles.vector_schedule=constant"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    rows = metrics(tmp_path / "whole")
    rates = [float(row["train/lr"]) for row in rows if row["train/lr"]]
    # No score improves by 90 %, so each one after the first halves the rate of the next steps, down to a hundredth.
    assert rates == [pytest.approx(rates[0] * max(0.01, 0.5**i), rel=1e-6) for i in range(len(rates))]
    cut = cut_and_resumed(settings, tmp_path)
    assert metrics(cut) == rows
    last = "checkpoints/step-00000012.model.safetensors"
    assert (cut / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_plateau_schedule_requires_validation(tmp_path: Path, text_file: Path) -> None:
    for settings in (["schedule=plateau"], ["roles.head_schedule=plateau"]):
        words = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *settings, "train.val_every=null"]
        refused = ablatio(["train", *words], tmp_path / "log")
        assert refused.code == 2 and "train.val_every=100" in refused.err
