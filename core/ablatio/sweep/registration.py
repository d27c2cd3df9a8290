"""Registration of a study before its first run: its deciding score, significance level, margin and target.

`margin=0.005nats`, `target=3.28`: an amount is a number and, where one could take it for another, the score's unit.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablatio.errors import ConfigError, Problem, did_you_mean
from ablatio.registry.kinds import tasks

AMOUNTS = ("margin", "target")  # settings that are amounts of the score
PER_BYTE = "bpb"  # comparable between tokenizers
UNITS = {"loss": "nats", "bpb": "bits/byte"}  # units of scores by the last part of their name
OTHER_NAMES = {
    "nat": "nats", "nats/token": "nats", "nats per token": "nats", "bpb": "bits/byte", "bits per byte": "bits/byte",
    "bit/byte": "bits/byte",
}  # fmt: skip
EXAMPLES = {"margin": "margin=0.005nats", "target": "target=3.28nats"}
_AMOUNT = re.compile(r"\s*['\"]?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z%][^'\"]*?)?['\"]?\s*")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of a score's unit; unit: as given, "" if none was."""

    value: float
    unit: str = ""

    def of(self, unit: str) -> str:
        """The amount as text, with the unit of the score."""
        return f"{self.value:g} {unit}"


def unit_of(metric: str) -> str:
    """Unit of a score: nats, bits/byte, or the score's own name."""
    name = metric.rsplit("/", 1)[-1]
    return UNITS.get(name, name)


def read_amount(name: str, text: str) -> Amount:
    """Parse `0.005nats`.  Raises ConfigError if it is no number, or if a margin is not above 0."""
    found = _AMOUNT.fullmatch(str(text))
    if found is None or not math.isfinite(float(found[1])):
        raise _wrong(name, f"expected a number and the unit of the score, got {text!r}")
    value = float(found[1])
    if name == "margin" and not value > 0:
        raise _wrong(name, f"a margin is a difference above 0, got {text}")
    return Amount(value, (found[2] or "").strip())


def amount_in(name: str, text: str, metric: str) -> Amount:
    """Parse an amount of this score.  Raises ConfigError for a unit that the score does not have."""
    amount, unit = read_amount(name, text), unit_of(metric)
    if amount.unit and OTHER_NAMES.get(amount.unit.lower(), amount.unit) != unit:
        what = f"{text} is in {amount.unit}, and {metric} is in {unit}"
        raise ConfigError([Problem(name, what, f"{name}={amount.value:g}{unit}")])
    return Amount(amount.value, unit)


def amount_problems(name: str, text: Any) -> list[Problem]:
    """Return the problems of an amount that show without its score: no number, or a margin that is not above 0."""
    try:
        read_amount(name, text)
    except ConfigError as error:
        return error.problems
    return []


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError([Problem(name, what, EXAMPLES[name])])


def register(settings: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what stands in study.json: metric, unit, alpha, and margin and target if they were given.

    configs  of the arms.  Without `primary` the score decides that all of them name (`score=`), else the task's main
             one, with different tokenizers bits per byte, if the task has them

    Raises ConfigError for a score that the task does not have, and for an amount in another unit.
    """
    task = configs[0]["task"]["name"]
    facts = tasks[task].facts
    several = any(config.get("tokenizer") != configs[0].get("tokenizer") for config in configs)
    main = f"val/{PER_BYTE if several and PER_BYTE in facts['scores'] else facts['main']}"
    named = {config.get("score") for config in configs}
    own = named.pop() if len(named) == 1 else None  # checked with the config: it may be one of an evaluation
    metric = settings["primary"] or own or main
    known = [f"val/{name}" for name in facts["scores"]]
    if metric not in (*known, own):
        what = f"task={task} has no score {metric}{did_you_mean(metric, known)}; it has {', '.join(known)}"
        raise ConfigError([Problem("primary", what, f"primary={known[0]}")])
    found: dict[str, Any] = {"metric": metric, "unit": unit_of(metric), "alpha": settings["alpha"]}
    for name in AMOUNTS:
        if settings[name] is not None:
            found[name] = amount_in(name, settings[name], metric).value
    return found


def sentence(registered: Mapping[str, Any]) -> str:
    """The registration in words, for the plan."""
    unit = registered["unit"]
    text = f"Registered before the first run: {registered['metric']} ({unit}) decides, alpha {registered['alpha']:g}"
    return text + "".join(f", {name} {registered[name]:g} {unit}" for name in AMOUNTS if name in registered) + "."
