"""Arms that are laid over a frame have the configs that Hydra itself composes."""

import random
from typing import Any

from ablatio.compose import compose_run
from ablatio.config import NEEDED
from ablatio.errors import ConfigError
from ablatio.options import groups, register_with_hydra
from ablatio.registry import REGISTRIES
from ablatio.sweep.compose import Composer
from ablatio.sweep.plan import plan_sweep
from ablatio.yamls import SWEEP, options_of

register_with_hydra()
GROUPS = groups()
VALUES = (
    "optimizer.lr=0.01", "model.d_ff=100", "train.steps=7", "seeds.init=${seed}", "norm.eps=1e-3", "name='a b'",
    "optimizer.lr=null", "+model.new=1",
)  # fmt: skip


def some_arm(chance: random.Random) -> list[str]:
    """Options of some kinds, perhaps a preset, a size and a study, and values: good, bad and interpolated ones."""
    arm = [f"{k}={chance.choice(GROUPS[k])}" for k in NEEDED if not REGISTRIES[k].many and chance.random() < 0.2]
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


def test_the_fast_way_is_hydras() -> None:
    """Oracle: Hydra composes each arm by itself."""
    chance, composer = random.Random(3), Composer()
    runs = 0
    for _ in range(12):
        arm = some_arm(chance)
        ours, theirs = outcome(composer.compose, arm), outcome(compose_run, arm)
        assert ours == theirs, arm
        runs += isinstance(ours, tuple)
    assert runs >= 2  # some of them can run


def test_one_frame_serves_all_arms_that_differ_in_parts_and_values() -> None:
    composer, as_written = Composer(), options_of(SWEEP)["glu_variants"].read()["train"]["batch_size"]
    for norm in ("layernorm", "rmsnorm", "dyt"):
        for lr in ("0.1", "0.2"):
            made = composer.compose(["+sweep=glu_variants", f"norm={norm}", f"optimizer.lr={lr}", "train.steps=9"])
            assert made.config["norm"]["name"] == norm and made.config["optimizer"]["lr"] == float(lr)
            assert made.config["train"]["batch_size"] == as_written
    assert len(composer._frames) == 1


def test_a_preset_s_values_of_a_part_hold_as_long_as_it_is_chosen() -> None:
    composer = Composer()
    kept, gone = (composer.compose(["preset=llama", f"norm={n}"]).config["norm"] for n in ("rmsnorm", "layernorm"))
    assert kept["eps"] == compose_run(["preset=llama"]).config["norm"]["eps"]
    assert gone["eps"] == compose_run(["norm=layernorm"]).config["norm"]["eps"]


def test_a_kind_that_may_be_left_out_is_chosen_and_left_out_like_any_other() -> None:
    """Also after a file has chosen it: what is said on the command line comes last."""
    for said in ("reward=length", "+reward=length"):
        assert compose_run([said, "reward.target=9"]).config["reward"] == {"name": "length", "target": 9}
    assert compose_run(["reward=null"]).config.get("reward") is None
    assert [arm.config.get("reward") for arm in plan_sweep(["reward=null,length"]).cells] == [
        None,
        {"name": "length", "target": 64},
    ]
