"""`train.minutes=10`: as many steps as fit into this time on this machine, by a rehearsal of the run."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.api.settings import value, without
from ablatio.errors import UserError
from ablatio.sweep.recipes.schema import RECIPE
from ablatio.training.rank_environment import from_environment

if TYPE_CHECKING:
    from rich.console import Console

    from ablatio.sweep.time_probe import Pace

KEY = "train.minutes"
OTHERS = ("train.steps", "train.tokens", "train.epochs", RECIPE, "extend")
PATIENCE = 120.0  # seconds until a rehearsal that has not trained a step is given up


def refuse_in_study(words: Sequence[str]) -> None:
    """Raise UserError if a study has a budget in minutes: each arm would train on other numbers of tokens."""
    if (given := value(words, KEY)) is not None:
        raise UserError(
            f"{KEY}={given}: a time gives each arm of a study, and each of its seeds, another number of steps\n"
            "    try: train.steps=1000 match=time, which gives all arms the training time of the baseline"
        )


def with_steps(words: Sequence[str], console: "Console") -> list[str]:
    """Return the settings with `train.steps` in place of `train.minutes`; unchanged if that is not given.

    The run begins in a temporary folder and trains for a second, without scores and checkpoints on the way.  The time
    until its first step, the steps, and the scores at their places are then to fill the given minutes.  So the run is
    one of `train.steps`: the time decides nothing that a repetition could not give again.

    Raises UserError for a time that is no positive number or too short for a step, and beside another budget.
    """
    given = value(words, KEY)
    if given is None:
        return list(words)
    seconds = 60 * _minutes(given)
    for other in OTHERS:
        if value(words, other) not in (None, "null"):
            raise UserError(
                f"{KEY}={given} cannot stand beside {other}={value(words, other)}: it sets the steps of one new run\n"
                "    try: train.steps=1000"
            )
    if from_environment() is not None or value(words, "trainer.nodes") not in (None, "1"):
        raise UserError(f"{KEY}={given}: each machine would measure a time of its own\n    try: train.steps=1000")
    rest = without(words, KEY)
    pace, steps = _fitting(rest, seconds, given)
    console.print(
        f"{KEY}={given}: {pace.start:.1f} s until the first step and {pace.step:.3g} s a step here, so "
        f"train.steps={steps}",
        highlight=False,
        soft_wrap=True,
    )
    return [*rest, f"train.steps={steps}"]


def _minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise UserError(f"{KEY}={text}: expected a positive number of minutes\n    try: {KEY}=10")
    return number


def _fitting(words: Sequence[str], seconds: float, given: str) -> "tuple[Pace, int]":
    """Pace of the run, and the largest number of its steps that take no more than `seconds`."""
    from ablatio.api import adapter
    from ablatio.config.packages import check_packages
    from ablatio.sweep.study import Job
    from ablatio.sweep.time_probe import rehearse
    from ablatio.training.budget import smallest

    config = dict(adapter.composed(words).config)
    check_packages([config])
    with tempfile.TemporaryDirectory(prefix="ablatio-") as folder:
        found = rehearse([Job("rehearsal", {}, int(config["seed"]), tuple(words), config)], Path(folder), PATIENCE)
    if not found:
        raise UserError(
            f"{KEY}={given}: a rehearsal of the run ended before its first step; with a number of steps it says why\n"
            "    try: train.steps=20"
        )
    (pace,) = found.values()

    def too_long(steps: int) -> bool:
        return pace.of({**config, "train": {**config["train"], "steps": steps}}, 0.0) > seconds

    steps = smallest(too_long) - 1
    if steps == 0:
        raise UserError(
            f"{KEY}={given}: the first step begins after {pace.start:.1f} s and takes {pace.step:.2g} s here, so none "
            "fits\n"
            f"    try: {KEY}={math.ceil((pace.start + pace.score + 100 * pace.step) / 6) / 10:g}"
        )
    return pace, steps
