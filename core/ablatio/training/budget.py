"""Steps of a run whose budget is in epochs, or in tokens of rows of varying length: known once the data is read."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ablatio.config.budget import MOST_STEPS, is_open
from ablatio.config.compose import Composed
from ablatio.data.order import RowPlan
from ablatio.errors import UserError
from ablatio.training.run_spec import RunSpec
from ablatio.training.timeline import Timeline


def settled(spec: RunSpec) -> RunSpec:
    """Return the specification with `train.steps` instead of `train.epochs` or `train.tokens`; else unchanged.

    The smallest number of steps that reaches the budget: the rows of so many passes over the training data, or so many
    tokens as the task counts them.  Reads and tokenizes the data, which is cached for the run.

    Raises UserError for a task without epochs.
    """
    if not is_open(spec.config):
        return spec
    steps = _steps(spec)
    return replace(spec, config=_with(spec.given, steps), public=_with(spec.public, steps) if spec.public else None)


def with_steps(found: Composed) -> Composed:
    """Return a composed config with its number of steps; unchanged if that does not follow from the data."""
    if not is_open(found.config):
        return found
    spec = settled(RunSpec(found.config, found.public))
    return replace(found, config=dict(spec.given), public=dict(spec.written))


def _with(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**config, "train": {**config["train"], "steps": steps, "tokens": None, "epochs": None}}


def _steps(spec: RunSpec) -> int:
    from ablatio.training.prepare import build_task, row_plan

    train = spec.config["train"]
    setup, task, stabilizers = build_task(spec)
    plan = setup.plan

    def plan_for(steps: int) -> RowPlan:
        """Give the task the rows of a run of so many steps: schedules place their values in fractions of it."""
        if spec.schedules:
            own = Timeline(_with(spec.config, steps), spec.schedules)
            plan.reshape(row_plan(own, stabilizers).shape)
        return plan

    def trained(steps: int) -> float:
        plan_for(steps)
        return float(task.tokens(steps))

    if (tokens := train["tokens"]) is not None:
        return smallest(lambda steps: trained(steps) >= tokens)
    rows = task.epoch_rows()
    if rows is None:
        name = spec.config["task"]["name"]
        raise UserError(
            f"train.epochs={train['epochs']:g}: task={name} has no epochs, as it samples its data\n"
            "    try: train.steps=1000"
        )
    wanted, length = train["epochs"] * rows, setup.length
    # In rows of full length: a shorter one is less of the data.
    return smallest(lambda steps: plan_for(steps).tokens(steps, length) / length >= wanted)


def smallest(reached: Callable[[int], bool]) -> int:
    """Smallest number of steps, at least 1, for which `reached` holds; it must hold for all larger ones too."""
    high = 1
    while not reached(high):
        if high > MOST_STEPS:
            raise UserError(f"the budget comes to more than {MOST_STEPS:,} steps\n    try: train.steps=1000")
        high *= 2
    low = high // 2  # not reached, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
