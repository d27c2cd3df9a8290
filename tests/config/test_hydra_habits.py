"""Habits from other Hydra programs work, or are refused with the way that works; none is accepted and ignored."""

from pathlib import Path

import pytest

from ablatio.api.settings import words_of
from ablatio.cli.main import main
from ablatio.config import hydra_habits
from ablatio.config.compose import compose_run, refuse_hydra_settings, try_compose
from ablatio.config.grammar import parse
from ablatio.config.hydra_sources import register_with_hydra
from ablatio.errors import ConfigError
from ablatio.registry.kinds.search_space import Interval
from ablatio.sweep import request


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_run([*overrides])
    return str(caught.value)


@pytest.mark.parametrize("key", hydra_habits.REFUSED)
@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_each_setting_of_hydra_is_refused_on_the_command_line_in_either_spelling(key: str, plus: str) -> None:
    problems = hydra_habits.refused([f"{plus}{key}=x"])
    assert [p.what for p in problems] == [hydra_habits.REFUSED[key][0]]


@pytest.mark.parametrize(
    "override",
    ["hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x", "hydra.verbose=true",
                 "hydra.searchpath=[pkg://ablatio]", "hydra.job.chdir=true", "hydra.output_subdir=x"]
)  # fmt: skip
def test_a_setting_of_hydra_in_a_file_is_refused_too(override: str) -> None:
    """Composed by Hydra alone, as a file of settings is: what it changes is seen in the composed config."""
    register_with_hydra()
    refuse_hydra_settings(try_compose([]))
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        refuse_hydra_settings(try_compose([override]))


def test_hydras_folder_of_a_run_and_of_a_sweep_is_out_and_name() -> None:
    assert words_of("train", ["hydra.run.dir=a/b/c", "seed=2"]) == ["out=a/b", "name=c", "seed=2"]
    assert words_of("run_study", ["+hydra.sweep.dir='/x y/z'"]) == ["out='/x y'", "name=z"]
    composed = compose_run(words_of("train", ["hydra.run.dir=a/b/c"]))
    assert (composed.config["out"], composed.config["name"]) == ("a/b", "c")
    for call, text in (("train", "hydra.sweep.dir=a/b"), ("train", "hydra.run.dir=x/${now:%Y}")):
        assert "OUT/NAME" in message(*words_of(call, [text]))


@pytest.mark.parametrize(
    ("plain", "others"),
    [
        ("norm=layernorm", ["+norm=layernorm", "++norm=layernorm"]),
        ("optimizer.lr=0.5", ["+optimizer.lr=0.5", "++optimizer.lr=0.5"]),
        ("seed=2", ["+seed=2", "++seed=2"]),
        ("size=tiny", ["+size=tiny"]),
        ("preset=gpt2", ["+preset=gpt2"]),
        ("+experiment=demo", ["experiment=demo", "++experiment=demo"]),
        ("stabilizer=[]", ["~stabilizer", "+stabilizer=[]"]),
        ("train.val_every=null", ["~train.val_every"]),
        ("reward=null", ["~reward"]),
    ],
)
def test_two_spellings_give_one_config(plain: str, others: list[str]) -> None:
    wanted = compose_run([plain]).config
    for other in others:
        assert compose_run([other]).config == wanted


@pytest.mark.parametrize(
    ("removal", "why"),
    [
        ("~optimizer.weight_decay", "needs a value"),
        ("~train.steps", "needs a value"),
        ("~norm", "every run has one norm"),
        ("~model", "every run has this section"),
        ("~stabilizer=clip", "name the options that remain"),
        ("~experiment", "no file is chosen"),
        ("~nothing.x", "no such key"),
        ("~optimizer.foo", "no such key"),
    ],
)
def test_what_every_run_needs_cannot_be_removed(removal: str, why: str) -> None:
    assert [why in p.what for p in hydra_habits.refused([removal])] == [True]
    with pytest.raises(ConfigError, match=why):
        request.read([removal, "seed=1,2"])


def test_every_key_of_a_config_is_removed_to_null_or_refused() -> None:
    """The property behind the cases: a removal never leaves a config without the key."""
    config = compose_run([]).config
    keys = {*config, *(f"{k}.{inner}" for k, v in config.items() if isinstance(v, dict) for inner in v)}
    keys = {key for key in keys if not key.endswith(".name") and key not in ("logger.csv", "stabilizer.clip")}
    assert len(keys) > 60
    for key in keys:
        spelled = hydra_habits.spelled(f"~{key}")
        assert hydra_habits.is_refused(f"~{key}") or spelled.endswith(("=null", "=[]")), key


def test_a_missing_file_and_an_empty_name_are_answered_in_our_words() -> None:
    assert "there is no `nope`; there are demo" in message("experiment=nope")
    assert "no name is given; there are demo" in message("experiment=")
    assert "leave it out" in message("experiment=null")
    assert "leave it out" in message("preset=null")


def test_a_value_from_the_environment_is_decoded_or_hinted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR", "0.002")
    monkeypatch.delenv("NOT_SET", raising=False)
    hint = message("optimizer.lr=${oc.env:LR}")
    assert "try: optimizer.lr=${oc.decode:${oc.env:LR}}" in hint and "This runs" in hint
    assert compose_run(["optimizer.lr=${oc.decode:${oc.env:LR}}"]).config["optimizer"]["lr"] == 0.002
    assert "environment variable NOT_SET is not set" in message("optimizer.lr=${oc.env:NOT_SET}")


@pytest.mark.parametrize("text", ["log(1e-4,1e-2)", "loguniform(1e-4, 1e-2)", "LogUniform(1e-4,1e-2)"])
def test_a_logarithmic_interval_has_the_names_of_the_field(text: str) -> None:
    parsed = parse(f"optimizer.lr={text}")
    assert parsed is not None
    axes = request.read([f"optimizer.lr={text}", "design=random"]).axes
    assert [axis.interval for axis in axes] == [Interval(1e-4, 1e-2, log=True)]
    assert axes[0].at(0.5) == "0.001"


def test_an_even_interval_over_decades_says_so_unless_it_is_called_uniform() -> None:
    def notes(*overrides: str) -> list[str]:
        sweep = request.read([*overrides, "design=random"])
        return [*request.notes(sweep.axes, sweep.overrides)]

    (note,) = notes("optimizer.lr=interval(1e-4,1e-2)")
    assert "'optimizer.lr=log(0.0001,0.01)'" in note
    assert not notes("optimizer.lr=uniform(1e-4,1e-2)") and not notes("model.dropout=interval(0,0.5)")
    assert not notes("optimizer.lr=log(1e-4,1e-2)")


def test_an_interval_of_a_whole_setting_is_whole_and_one_without_values_is_refused() -> None:
    (axis,) = request.read(["train.batch_size=interval(1,8)", "design=random"]).axes
    assert {axis.at(u / 100) for u in range(100)} == {str(n) for n in range(1, 9)}
    for bad in ("optimizer.lr=log(0,1)", "optimizer.lr=interval(1,0.1)"):
        with pytest.raises(ConfigError, match="interval"):
            request.read([bad, "design=random"])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--cfg", "job", "optimizer.lr=1e-3", "--package", "optimizer"], "lr: 0.001"),
        (["experiment=demo", "-c", "job", "-p", "train"], "steps: 600"),
        (["--cfg", "job", "hydra.run.dir=a/b/c"], "out: a/b\nname: c"),
    ],
)
def test_cfg_shows_the_checked_config(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--cfg", "job", "norm=rmsnrom"], "did you mean rmsnorm"),
        (["--cfg=job", "~norm"], "every run has one norm"),
        (["--cfg", "jobb"], "expected one of job"),
        (["--info", "default"], "expected one of all"),
        (["--cfg", "job", "--package", "nothing"], "is not in the config"),
    ],
)
def test_cfg_answers_mistakes_in_our_words(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *arguments]) == 2
    assert why in capsys.readouterr().err
