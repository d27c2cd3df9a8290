"""Schedules on the command line: no quotes beyond the shell's, and one value of an axis like any other."""

import pytest

from ablatio.config.compose import compose_run
from ablatio.config.words import with_quoted_schedules
from ablatio.errors import ConfigError
from ablatio.sweep.request import read


@pytest.mark.parametrize(
    "text, quoted",
    [
        ("a.b=linear(64,1024)", "a.b='linear(64,1024)'"),
        ("a.b=linear(64, 1024),256", "a.b='linear(64, 1024)',256"),
        ("a.b=choice(stages(0.1@0,0@0.9),0.1)", "a.b=choice('stages(0.1@0,0@0.9)',0.1)"),
        ("a.b='linear(64,1024)'", "a.b='linear(64,1024)'"),
        ("a.b=interval(0,1)", "a.b=interval(0,1)"),
        ("linear(1,2)", "linear(1,2)"),
    ],
)
def test_schedules_are_quoted_for_the_grammar_of_overrides(text: str, quoted: str) -> None:
    assert with_quoted_schedules(text) == quoted == with_quoted_schedules(quoted)


def test_a_schedule_is_a_value_of_a_run_and_of_an_axis() -> None:
    run = compose_run(["attention=sliding", "attention.window=linear(8, 32)", "optimizer.weight_decay=steps(0.1,0)"])
    assert (
        run.config["attention"]["window"] == "linear(8,32)" and run.config["optimizer"]["weight_decay"].at(9, 10) == 0
    )
    said = ["attention=sliding", "attention.window=linear(8,32),16", "optimizer.weight_decay=0.1,stages(0.1@0,0@0.9)"]
    sweep = read([*said, "baseline=attention.window=linear(8,32),optimizer.weight_decay=0.1"])
    assert {axis.key: axis.values for axis in sweep.axes} == {
        "attention.window": ("linear(8,32)", "16"),
        "optimizer.weight_decay": ("0.1", "stages(0.1@0,0@0.9)"),
    }
    assert sweep.baseline == {"attention.window": "linear(8,32)", "optimizer.weight_decay": "0.1"}


def test_adapters_cannot_untie_the_head() -> None:
    """Head and embedding are frozen: the schedule would do nothing."""
    with pytest.raises(ConfigError, match="freezes head and embedding"):
        compose_run(["peft=lora", "model.tied=stages(true@0,false@0.5)"])
    assert compose_run(["peft=lora", "model.tied=true"])
