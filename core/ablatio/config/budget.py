"""Length of a run: the config gives steps, tokens or epochs, and tokens and epochs are converted to steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablatio.config.words import key_of, value_of
from ablatio.errors import Problem
from ablatio.registry.registry import REGISTRIES

STEPS, BATCH = "train.steps", "train.batch_tokens"
OTHERS = ("train.tokens", "train.epochs")
BUDGETS = (STEPS, *OTHERS)
MOST_STEPS = 10**9


def settled(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """(the config with the steps that its budget comes to, problems).

    `train.batch_tokens` becomes rows and accumulated batches, `train.tokens` becomes steps, rounded up; then they are
    null, so that a run has one config and one id however its length was said.  Epochs, and tokens of tasks whose rows
    have no fixed length, stay until the data is read (ablatio.training.budget).

    overrides  a budget of the command line replaces that of a file
    """
    train = dict(config["train"])
    problems = [*_choose(train, overrides)]
    if not problems and train["batch_tokens"] is not None:
        problems += _batches(train, config, overrides)
    if not problems and train["tokens"] is not None and has_fixed_rows(config):
        per_step = train["batch_size"] * train["accumulate"] * _length(config)
        train |= {"steps": math.ceil(train["tokens"] / per_step), "tokens": None}
        if train["steps"] > MOST_STEPS:
            problems.append(Problem("train.tokens", f"comes to {train['steps']:,} steps of {per_step:,} tokens each"))
    return {**config, "train": train}, problems


def is_open(config: Mapping[str, Any]) -> bool:
    """True if the number of steps follows from the data, which has not been read."""
    return any(config["train"][key.partition(".")[2]] is not None for key in OTHERS)


def has_fixed_rows(config: Mapping[str, Any]) -> bool:
    """True if each step trains on batch_size * accumulate * length tokens, as pre-training without a ramp does."""
    usual = config["task"]["name"] == REGISTRIES["task"].default
    known = REGISTRIES["stabilizer"].entries
    ramps = [name for name in config.get("stabilizer") or {} if "batch_rows" in known[name].facts.get("uses", ())]
    numbers = (config["train"]["batch_size"], config["train"]["accumulate"], _length(config))
    return usual and not ramps and all(isinstance(number, int) for number in numbers)


def without(overrides: Sequence[str]) -> list[str]:
    """The overrides without those of a budget, for a run whose number of steps is set."""
    return [text for text in overrides if key_of(text) not in BUDGETS]


def _length(config: Mapping[str, Any]) -> Any:
    return config["data"]["length"] or config["model"]["max_len"]


def _choose(train: dict[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    """Leave one budget: that of the command line, else that of a file."""
    said = [key_of(text) for text in overrides if key_of(text) in BUDGETS and value_of(text) not in ("null", "")]
    given = list(dict.fromkeys(said))
    if not given:
        given = [key for key in OTHERS if train[key.partition(".")[2]] is not None]
    if len(given) > 1:
        yield Problem(given[1], f"is a second budget beside {given[0]}; a run has one of {', '.join(BUDGETS)}")
    elif given:
        train |= {key.partition(".")[2]: None for key in OTHERS if key != given[0]}


def _batches(train: dict[str, Any], config: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    """Rows per batch and batches per step that together have `batch_tokens` tokens."""
    said, length = {key_of(text) for text in overrides}, _length(config)
    rows, wanted = train["batch_size"], train["batch_tokens"]
    if not has_fixed_rows(config):
        yield Problem(BATCH, "the tokens of a step are fixed only where all rows have data.length tokens", "")
        return
    if "train.accumulate" in said and train["accumulate"] * rows * length != wanted:
        what = f"train.accumulate={train['accumulate']} gives {train['accumulate'] * rows * length:,} tokens per step"
        yield Problem(BATCH, what)
        return
    unit = rows * length  # tokens of one batch
    if "train.batch_size" not in said and wanted < unit and wanted % length == 0:
        # A batch that nobody asked for may shrink to the step; of one that was given the step must be a multiple.
        rows, unit = int(wanted // length), int(wanted)
    if wanted % unit:
        near = max(unit, round(wanted / unit) * unit)
        smaller = next((n for n in range(rows, 0, -1) if wanted % (n * length) == 0), 0)  # a batch that fits exactly
        what = (
            f"expected a multiple of train.batch_size * row length = {rows} * {length} = {unit:,}, got {wanted:,.12g}"
        )
        other = f"train.batch_size={smaller}" if smaller else f"{BATCH}={near}"
        # A step within a tenth of the wish is nearer to it than another number of rows.
        yield Problem(BATCH, what, f"{BATCH}={near}" if abs(near - wanted) <= 0.1 * wanted else other)
        return
    train |= {"batch_size": rows, "accumulate": int(wanted // unit), "batch_tokens": None}
