"""Arms composed from a shared frame equal the configs that Hydra composes."""

import random
from pathlib import Path
from typing import Any

import pytest
from helpers.llamas import small_llama

from ablatio.config.compose import compose_run
from ablatio.config.compose_many import Composer
from ablatio.config.hydra_sources import groups, register_with_hydra
from ablatio.config.inherit import in_files
from ablatio.config.kind_lists import needed
from ablatio.config.yaml_files import SWEEP, options_of
from ablatio.errors import ConfigError, UserError
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep.plan import plan_sweep

register_with_hydra()
GROUPS = groups()
# A study that begins with a model that is not here is refused in one and the same way: tests/training/test_sweeps.py.
GROUPS[SWEEP] = [name for name in GROUPS[SWEEP] if not in_files([f"+sweep={name}"]).get("model.start")]
VALUES = (
    "optimizer.lr=0.01", "model.d_ff=100", "train.steps=7", "seeds.init=${seed}", "norm.eps=1e-3", "name='a b'",
    "optimizer.lr=null", "+model.new=1",
)  # fmt: skip


def some_arm(chance: random.Random) -> list[str]:
    """Draw options of some kinds, sometimes a preset, size and study, and valid, invalid and interpolated values."""
    arm = [f"{k}={chance.choice(GROUPS[k])}" for k in needed() if not REGISTRIES[k].multiple and chance.random() < 0.2]
    for group in ("preset", "size", "+sweep"):
        arm += [f"{group}={chance.choice(GROUPS[group.lstrip('+')])}"] if chance.random() < 0.3 else []
    if chance.random() < 0.2:
        arm.append(f"stabilizer=[{','.join(chance.sample(GROUPS['stabilizer'], 2))}]")
    arm += [value for value in VALUES if chance.random() < 0.15]
    chance.shuffle(arm)
    return arm


def outcome(compose: Any, arm: list[str]) -> Any:
    try:
        made = compose(arm)
    except ConfigError as error:
        return sorted(map(str, error.problems))
    return made.config, made.public


@pytest.mark.slow
def test_composer_gives_what_hydra_composes() -> None:
    """Oracle: Hydra composes each arm by itself."""
    chance, composer = random.Random(3), Composer()
    runs = 0
    for arm in (
        ["preset=llama", "size=tiny"],
        ["+sweep=glu_variants", "norm=dyt"],
        *(some_arm(chance) for _ in range(9)),
    ):
        ours, theirs = outcome(composer.compose, arm), outcome(compose_run, arm)
        assert ours == theirs, arm
        runs += isinstance(ours, tuple)
    assert runs >= 2  # some of them can run


BACKSLASHES = (
    r"'\n\n'", r"'a\b'", r"'\\'", r"'a\\'", r"'\\\\b'", r"'\$'", r"'$\{x}'", r"'\ '", r"'a\'b'", r"'\${seed}'",
    r"'\\${seed}'",
)  # fmt: skip


@pytest.mark.parametrize("quoted", BACKSLASHES)
def test_a_backslash_means_what_it_means_to_hydra(quoted: str) -> None:
    """And a knob with one, as the separator of most texts, is composed with the frame of the other arms."""
    arm, composer = ["norm=rmsnorm", "source=text", f"source.separator={quoted}"], Composer()
    ours = outcome(composer.compose, arm)
    assert isinstance(ours, tuple) and ours == outcome(compose_run, arm)
    assert (composer.tree(arm) is None) == ("${" in quoted)


def test_one_frame_serves_all_arms_that_differ_in_parts_and_values() -> None:
    composer, as_written = Composer(), options_of(SWEEP)["glu_variants"].read()["train"]["batch_size"]
    for norm in ("layernorm", "rmsnorm", "dyt"):
        for lr in ("0.1", "0.2"):
            made = composer.compose(["+sweep=glu_variants", f"norm={norm}", f"optimizer.lr={lr}", "train.steps=9"])
            assert made.config["norm"]["name"] == norm and made.config["optimizer"]["lr"] == float(lr)
            assert made.config["train"]["batch_size"] == as_written
    assert len(composer._frames) == 1


def test_preset_values_of_a_part_apply_while_it_is_chosen() -> None:
    composer = Composer()
    kept, gone = (composer.compose(["preset=llama", f"norm={n}"]).config["norm"] for n in ("rmsnorm", "layernorm"))
    assert kept["eps"] == compose_run(["preset=llama"]).config["norm"]["eps"]
    assert gone["eps"] == compose_run(["norm=layernorm"]).config["norm"]["eps"]


@pytest.mark.slow
def test_arms_that_start_from_a_model_equal_hydras(tmp_path: Path) -> None:
    """Oracle: Hydra composes each arm by itself.  The study names the model; its other settings take precedence."""
    start = ["+sweep=lora_matrices", f"model.path={small_llama(tmp_path)}"]
    composer, more = Composer(), ([], ["peft=none"], ["peft.targets=[k_proj]", "peft.rank=3"], ["position=alibi"])
    for arm in ([*start, *said] for said in (*more, ["norm=layernorm"], ["model.max_len=128", "size=tiny"])):
        assert outcome(composer.compose, arm) == outcome(compose_run, arm), arm
    made = composer.compose(start).config
    assert made["model"]["d_model"] == 32 and made["attention"]["name"] == "gqa"  # the model's
    assert made["model"]["max_len"] == 512 and made["peft"]["rank"] == 6  # the study's
    changed = composer.compose([*start, "norm=layernorm"]).config
    assert changed["norm"]["name"] == "layernorm" and changed["position"] == made["position"]


def test_a_missing_model_is_reported_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"try: ablatio train .* name=base"):
        compose_run(["+sweep=peft_equal_parameters"])
    with pytest.raises(UserError, match="try: ablatio fetch smollm2"):
        compose_run(["+sweep=lora_matrices"])


def test_an_optional_kind_is_chosen_and_left_out_like_any_other() -> None:
    """Also after a file has chosen it: the command line takes precedence."""
    for said in ("reward=length", "+reward=length"):
        assert compose_run([said, "reward.target=9"]).config["reward"] == {"name": "length", "target": 9}
    assert compose_run(["reward=null"]).config.get("reward") is None
    assert [arm.config.get("reward") for arm in plan_sweep(["reward=null,length"]).cells] == [
        None,
        {"name": "length", "target": 64},
    ]
