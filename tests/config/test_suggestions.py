"""Suggestions know the words of the field, and never one that means something else."""

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatio.config.compose import compose_run
from ablatio.config.hydra_sources import groups, register_with_hydra
from ablatio.config.suggestions import unknown_key
from ablatio.config.synonyms import ALIASES, NOTES, VALUES
from ablatio.config.typos import distance, is_typo, nearest
from ablatio.errors import ConfigError
from ablatio.sweep.plan import plan_sweep


@pytest.fixture(scope="module")
def tree() -> dict[str, object]:
    register_with_hydra()
    return compose_run([]).config


def test_every_word_of_another_library_leads_to_a_setting_that_exists(tree: dict[str, object]) -> None:
    options = groups()
    for word, setting in ALIASES.items():
        problem = unknown_key(word, "1", tree, options)
        target = problem.fix.partition("=")[0]
        if setting == "max_norm":
            assert target.endswith(".max_norm")
            continue
        assert target == setting, word
        node: object = {**options, **tree, "resume": None}
        for part in setting.split("."):
            assert isinstance(node, dict)
            # knobs of grouped attention, of a search, and of a kind that is chosen only by name
            if setting not in ("attention.n_kv_heads", "design.runs") and not setting.startswith("peft."):
                assert part in node, f"{word}: {setting} does not exist"
                node = node[part]


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("lr=1e-3", "optimizer.lr=1e-3"),
        ("precision=bf16", "trainer.precision=bf16"),
        ("precision=bf16-mixed", "trainer.precision=bf16"),
        ("batch_size=4", "train.batch_size=4"),
        ("dropout=0.1", "model.dropout=0.1"),
        ("trainer.max_steps=100", "train.steps=100"),
        ("optimizer.learning_rate=1e-3", "optimizer.lr=1e-3"),
        ("optimiser.lr=1e-3", "optimizer.lr=1e-3"),
        ("trainer.precison=32", "trainer.precision=32"),
        ("trainer.device=gpu", "trainer.device=cuda"),
        ("alibi=true", "position=alibi"),
        ("ema=true", "stabilizer=[clip,ema]"),
        ("trainer.precision=fp16", "trainer.precision=16"),
    ],
)
def test_the_setting_that_was_meant_is_suggested_and_composes(given_: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run([given_])
    text = str(caught.value)
    assert f"try: {meant}\n" in text
    found = re.search(r"This runs: ablatio train (.*)", text)
    assert found and shlex.split(found[1]) == [meant]
    compose_run([meant])


@pytest.mark.parametrize("override", ["lr=-3", "layers_of_norm=3", "eps=1e-5", "callbacks=x", "seq=lstm", "norm=rope"])
def test_without_one_setting_that_works_none_is_shown(override: str) -> None:
    """`eps` has two meanings, -3 is no rate, and dropping what was asked for is no way to make it run."""
    with pytest.raises(ConfigError) as caught:
        compose_run([override])
    assert "try:" not in str(caught.value) and "This runs" not in str(caught.value)


def test_a_knob_of_an_option_that_is_not_chosen_says_how_to_choose_it() -> None:
    with pytest.raises(ConfigError, match=r"is not chosen; stabilizer=\[clip,ema\] chooses it"):
        compose_run(["stabilizer.ema.decay=0.9"])


def test_callbacks_point_to_stabilizers_and_loggers() -> None:
    for word in ("callbacks", "early_stopping", "patience"):
        assert "ablatio list stabilizer" in NOTES[word] and "callbacks=[...]" in NOTES[word]


def test_a_sweep_suggests_too() -> None:
    with pytest.raises(ConfigError, match=r"did you mean optimizer.lr\?\n    try: optimizer.lr=0.001,0.0001"):
        plan_sweep(["lr=1e-3,1e-4"])


@pytest.mark.parametrize("word", ["design.n_trials", "design.num_samples", "trials"])
def test_the_number_of_arms_of_a_search_by_its_usual_names(word: str) -> None:
    """`trials` alone is the number of values of tune=; without tune= it would be accepted and ignored."""
    for design, knob in {"random": "runs", "tpe": "trials"}.items():
        for wrong in {word, "design.runs", "design.trials"} - {f"design.{knob}"}:
            with pytest.raises(ConfigError, match=rf"try: design.{knob}=7$"):
                plan_sweep(["optimizer.lr=log(1e-4,1e-2)", f"design={design}", f"{wrong}=7"])
    with pytest.raises(ConfigError) as caught:
        plan_sweep(["optimizer.lr=1e-3,1e-2", f"{word}=7"])
    assert "design.runs=7" not in str(caught.value)  # a full design draws nothing


def test_values_of_other_libraries_are_values_here(tree: dict[str, object]) -> None:
    for setting, values in VALUES.items():
        for value in {*values.values()} - {"32", "bf16"}:  # these are composed above
            section, _, key = setting.partition(".")
            assert str(compose_run([f"{setting}={value}"]).config[section][key]) == value


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("batch_tokens", "batch_size"), ("n_layer", "n_heads"), ("precision", "position"), ("dropout", "out"),
        ("n_kv_heads", "n_heads"), ("layers", "launcher"), ("extend", "seed"), ("tokens", "steps"), ("lr", "lm"),
        ("max_steps", "max_len"),
    ],
)  # fmt: skip
def test_another_word_is_no_misspelling(word: str, name: str) -> None:
    assert not is_typo(word, name) and not is_typo(name, word)


@given(st.text("abcdefgh_", min_size=4, max_size=12), st.data())
def test_one_slip_is_always_recognized(name: str, data: st.DataObject) -> None:
    """An exchange, a missing, a doubled or a wrong letter: distance 1, and the name is the nearest."""
    at = data.draw(st.integers(0, len(name) - 2))
    slips = [
        name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        name[:at] + name[at + 1 :],
        name[:at] + name[at] + name[at:],
        f"{name[:at]}z{name[at + 1 :]}",
    ]
    for slip in slips:
        assert distance(slip, name) <= 1
        parts = min(map(len, name.split("_")))
        if parts >= 3 and slip.count("_") == name.count("_"):
            assert name in nearest(slip, [name])


def test_names_of_peft_are_those_of_the_chosen_method() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(["peft=lora", "model.path=x", "peft.r=4", "lora_alpha=8", "peft.target_modules=[q_proj]"])
    for setting in ("peft.rank=4", "peft.alpha=8", "peft.targets=[q_proj]"):
        assert f"try: {setting}\n" in f"{caught.value}\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.n_kv_heads=2", "it is a knob of attention=.*gqa.*: attention=OPTION attention.n_kv_heads=2$"),
        ("top_k=2", "it is a knob of .*mlp=.*moe.*: .*mlp=OPTION mlp.top_k=2"),
        ("task=dpo", "there is no `dpo`, which is an option of alignment; there are"),
        ("schedule.min_lr=1e-5", "is a share of optimizer.lr: schedule.final=0.1"),
        ("layers.0.attention=none", r"layers.at.attention=\{0:OPTION\}"),
        ("stabilizer.clip.zzz=1", "there is no `zzz`; there are max_norm"),
    ],
)
def test_what_belongs_to_another_part_says_to_which(override: str, said: str) -> None:
    """`n_kv_heads` was once read as n_heads misspelled, which is another model."""
    with pytest.raises(ConfigError, match=said) as caught:
        compose_run([override])
    assert "try:" not in str(caught.value)


def test_the_form_that_names_a_single_layer_composes() -> None:
    assert compose_run(["layers.at.attention={0:none}"]).config["layers"]["at"]["attention"] == {"0": "none"}


@pytest.mark.parametrize("name", ["log", "loguniform", "uniform"])
def test_an_interval_that_counts_its_values_says_how_many_are_drawn(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\(1e-4,1e-2\) with design=random design.runs=5 draws as many"):
        plan_sweep([f"optimizer.lr={name}(1e-4,1e-2,5)"])
    assert len(plan_sweep([f"optimizer.lr={name}(1e-4,1e-2)", "design=random", "design.runs=5"]).jobs) == 5
