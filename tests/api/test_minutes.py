"""`train.minutes=`: the number of steps that fill a time, and where a time is no budget."""

import json
import random
from pathlib import Path

import pytest
from helpers.runs import TINY
from rich.console import Console

import ablatio
from ablatio.api import minutes
from ablatio.cli.main import main
from ablatio.errors import UserError
from ablatio.sweep import time_probe
from ablatio.sweep.time_probe import Pace

QUIET = Console(quiet=True)


def at_pace(monkeypatch: pytest.MonkeyPatch, pace: Pace | None) -> None:
    """Let every rehearsal find this pace, or fail."""
    monkeypatch.setattr(time_probe, "rehearse", lambda line, folder, patience: {line[0].stage: pace} if pace else {})


def seconds(pace: Pace, steps: int, every: int | None) -> float:
    """Oracle: the time of a run, counted event by event."""
    total = pace.start
    for step in range(1, steps + 1):
        total += pace.step
        if step == steps or (every and step % every == 0):
            total += pace.score
    return total


@pytest.mark.parametrize("seed", range(20))
def test_steps_fill_the_time_and_no_more(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    pace = Pace(draw.uniform(0, 5), draw.uniform(0.01, 1), draw.uniform(0, 3), draw.uniform(0, 1e9))
    every = draw.choice([None, 7, 50])
    at_pace(monkeypatch, pace)
    wanted = draw.uniform(0.2, 1)
    words = ["size=tiny", f"train.val_every={every or 'null'}", f"{minutes.KEY}={wanted}"]
    steps = int(minutes.with_steps(words, QUIET)[-1].removeprefix("train.steps="))
    assert seconds(pace, steps, every) <= 60 * wanted + 1e-9 < seconds(pace, steps + 1, every) + 2e-9


SLOW, FAST = Pace(20.0, 9.0, 0.0, 0.0), Pace(0.1, 0.01, 0.0, 0.0)


@pytest.mark.parametrize(
    ("given", "pace", "said"),
    [
        (["train.minutes=soon"], FAST, "expected a positive number of minutes"),
        (["train.minutes=-1"], FAST, "expected a positive number of minutes"),
        (["train.minutes=nan"], FAST, "expected a positive number of minutes"),
        (["train.minutes=1", "train.steps=5"], FAST, "cannot stand beside train.steps=5"),
        (["train.minutes=1", "train.tokens=5e5"], FAST, "cannot stand beside train.tokens=5e5"),
        (["train.minutes=1", "recipe=instructgpt"], FAST, "cannot stand beside recipe=instructgpt"),
        (["train.minutes=1", "extend=runs/a"], FAST, "cannot stand beside extend=runs/a"),
        (["train.minutes=0.1"], SLOW, "the first step begins after 20.0 s and takes 9 s here, so none fits"),
        (["train.minutes=1"], None, "a rehearsal of the run ended before its first step"),
        (["train.minutes=1", "norm=nrom"], FAST, "nrom"),
    ],
)
def test_a_time_that_cannot_be_a_budget_is_refused(
    given: list[str], pace: Pace | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_pace(monkeypatch, pace)
    with pytest.raises(UserError) as refused:
        minutes.with_steps(["size=tiny", *given], QUIET)
    assert said in str(refused.value)
    assert "try: " in str(refused.value) or "there are" in str(refused.value)


def test_the_suggested_time_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    at_pace(monkeypatch, SLOW)
    with pytest.raises(UserError) as refused:
        minutes.with_steps(["size=tiny", "train.minutes=0.1"], QUIET)
    suggested = str(refused.value).rsplit("try: ", 1)[1]
    assert int(minutes.with_steps(["size=tiny", suggested], QUIET)[-1].removeprefix("train.steps=")) >= 50


def test_studies_and_ranks_refuse_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "norm=rmsnorm,layernorm", "train.minutes=1"]) == 2
    assert "match=time" in capsys.readouterr().err
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="each machine would measure a time of its own"):
        minutes.with_steps(["size=tiny", "train.minutes=1"], QUIET)
    monkeypatch.undo()
    with pytest.raises(UserError, match="each machine would measure a time of its own"):
        minutes.with_steps(["size=tiny", "train.minutes=1", "trainer.nodes=2"], QUIET)


@pytest.mark.slow
def test_the_run_is_one_of_its_steps(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown is what the run records; with the same steps it gives the same numbers again."""
    words = [w for w in TINY if not w.startswith(("train.steps", "train.val_every", "train.checkpoint_every"))]
    words += [f"source.path={text_file}", "train.val_every=null", "train.checkpoint_every=null"]
    run = ablatio.train(*words, "train.minutes=0.04", out=tmp_path, name="timed")
    steps = run.summary["steps"]
    assert "train.minutes=0.04: " in (shown := capsys.readouterr().out) and f"so train.steps={steps}\n" in shown
    config = json.loads((run.folder / "config.json").read_text())
    assert config["train"]["steps"] == steps > 1 and "minutes" not in config["train"]
    again = ablatio.train(*words, f"train.steps={steps}", out=tmp_path, name="again", quiet=True)
    assert again.summary["val/loss"] == run.summary["val/loss"]
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"timed", "again"}, "the rehearsal leaves nothing"
