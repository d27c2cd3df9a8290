"""Settings of the sweep itself: given beside the run's (`-m norm=a,b plan=0.01`), or under `sweep:` of a study.

They say how arms are chosen, compared and executed.  None of them enters a run's config, so a run has the same id in
every sweep.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ablatio.config.problems import unknown, value_problems
from ablatio.config.schema import section_knobs
from ablatio.config.synonyms import RUNS
from ablatio.errors import Problem
from ablatio.registry.kinds import designs
from ablatio.registry.knobs import Fraction, NonNegative, Positive
from ablatio.sweep.ledger import Retry
from ablatio.sweep.registration import AMOUNTS, amount_problems

DESIGN = "design"
COUNTS = ("runs", "trials")  # what designs that draw their arms call the number of them
DURATIONS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
WORDS = (
    "question",
    "expected",
    "recorded",
    "lengths",
    "axes",
    "recipe",
    "overrides",
)  # keys of a study file that are no settings


@dataclass(kw_only=True)
class Sweep:
    """How arms are chosen, compared and executed."""

    baseline: Annotated[
        str | None, "arm that the others are compared with: `gelu`, or `activation=gelu,norm=rmsnorm`; null: all pairs"
    ] = None
    match: Annotated[
        Literal["none", "params", "trainable", "bytes", "flops", "time"] | None,
        "quantity equal across arms (trainable: trained parameters; bytes: of the stored weights); null: as each run "
        "has it (gated: narrower d_ff)",
    ] = None
    resize: Annotated[
        Literal["model.d_ff", "model.n_layers", "train.steps", "peft"] | None,
        "setting that match= changes; default model.d_ff, train.steps for time, the peft method's size for trainable",
    ] = None
    tune: Annotated[str | None, "setting tuned separately for each arm: optimizer.lr"] = None
    trials: Annotated[int, Positive, "values tried for tune=, equally many for each arm"] = 5
    plan: Annotated[float | None, Positive, "difference in nats to detect: prints how many seeds that needs"] = None
    alpha: Annotated[float, Fraction, "share of studies without any effect that may name a winner"] = 0.05
    power: Annotated[float, Fraction, "share of studies that should detect a difference of plan="] = 0.8
    primary: Annotated[str | None, "score that decides: val/bpb; null: the main score of the task"] = None
    margin: Annotated[
        str | None, "difference that matters, in the score's unit: `0.005nats`; smaller ones count as equal"
    ] = None
    target: Annotated[str | None, "score to reach, `3.28nats`: the report tests which arms do, and from which step"] = (
        None
    )
    until: Annotated[
        Literal["resolved"] | None,
        "add seeds in planned looks until each comparison is resolved, equal within margin=, or hopeless",
    ] = None
    seeds: Annotated[str | None, "fewest and most seeds of until=resolved: 3..20"] = None
    budget: Annotated[str | None, "most computing time of until=resolved, all runs together: 2h, 90min"] = None
    workers: Annotated[int | None, Positive, "parallel runs; by default one per core"] = None
    timeout: Annotated[float | None, Positive, "seconds after which a run is stopped and fails"] = None
    hang: Annotated[
        float | None,
        Positive,
        "seconds without output in metrics.csv and log.txt after which a run is stopped and fails",
    ] = None
    retry: Annotated[Retry | None, "repeat failed runs: `failed` for all, or one kind of failure"] = None
    join: Annotated[bool, "share the work with a sweep that already owns this folder"] = False
    table: Annotated[int, NonNegative, "arms shown before the first run; 0: none, and nothing is timed"] = 40


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings of a sweep: `design` with its knobs, and one value for each field of `Sweep`."""

    design: Mapping[str, Any]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def changed(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        return {k.name: self.values[k.name] for k in section_knobs(Sweep) if self.values[k.name] != k.default}


def is_setting(key: str) -> bool:
    """True if a key of the command line belongs to the sweep, not to the run."""
    return key.split(".")[0] == DESIGN or key in {k.name for k in section_knobs(Sweep)}


def check(given: Mapping[str, Any]) -> tuple[Settings | None, list[Problem]]:
    """Return (the settings given as {plan: 0.01, design: full, design.runs: 12}, or None; all problems)."""
    knobs = {k.name: k for k in section_knobs(Sweep)}
    named = given.get(DESIGN, designs.usual)
    design = dict(named) if isinstance(named, Mapping) else {"name": named}
    problems: list[Problem] = []
    values = {name: knob.default for name, knob in knobs.items()}
    for key, value in given.items():
        if key.startswith(f"{DESIGN}."):
            design[key.removeprefix(f"{DESIGN}.")] = value
        elif key in knobs:
            problems += (found := list(value_problems(key, knobs[key], value)))
            values[key] = None if found else knobs[key].cast(value)
            problems += amount_problems(key, value) if key in AMOUNTS and values[key] is not None else []
        elif key != DESIGN:
            problems.append(unknown(key, key, [*knobs, DESIGN]))
    problems += _design_problems(design)
    if values["seeds"] and not values["until"]:
        values["until"] = "resolved"
    problems += _limit_problems(values)
    if "trials" in given and not values["tune"]:
        problems.append(_trials_without_tune(design, given["trials"]))
    return (None if problems else Settings(_cast(design), values)), problems


def seed_limits(text: str) -> tuple[int, int] | None:
    """`3..20` as (3, 20); None unless both are whole numbers, the first 2 or more, the second no smaller."""
    first, dots, most = text.partition("..")
    if not (dots and first.isdigit() and most.isdigit()):
        return None
    return (int(first), int(most)) if 2 <= int(first) <= int(most) else None


def seconds_of(text: str) -> float | None:
    """`90s`, `5min`, `2h` or `1d` in seconds; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    return float(found[1]) * DURATIONS[found[2]] if found and float(found[1]) else None


def _limit_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of the limits of a sequential study."""
    seeds, budget = values["seeds"], values["budget"]
    if seeds and seed_limits(seeds) is None:
        what = f"expected the fewest and the most seeds, 2 or more, got {seeds!r}"
        yield Problem("seeds", what, "seeds=3..20")
    if budget and seconds_of(budget) is None:
        yield Problem("budget", f"expected a time in s, min, h or d, got {budget!r}", "budget=2h")
    if budget and not values["until"]:
        yield Problem("budget", "it limits a study that adds seeds until it is resolved", "until=resolved")


def _trials_without_tune(design: Mapping[str, Any], value: Any) -> Problem:
    """Problem of `trials=20` for a search: it counts the values of tune=, and would change nothing."""
    name = str(design.get("name", designs.usual))
    what = "it says how many values of tune= are tried in each arm, and tune= is not set"
    if name in designs.names() and (knob := next((k for k in COUNTS if designs[name].knob(k)), "")):
        return Problem("trials", f"{what}; design={name} tries {DESIGN}.{knob} arms", f"{DESIGN}.{knob}={value}")
    return Problem("trials", what, f"tune=optimizer.lr trials={value}")


def _design_problems(design: Mapping[str, Any]) -> list[Problem]:
    names = designs.names()
    name = str(design.get("name", designs.usual))
    if name not in names:
        return [unknown(DESIGN, name, names, prefix=f"{DESIGN}=")]
    knobs = {k.name: k for k in designs[name].knobs}
    found: list[Problem] = []
    for key, value in design.items():
        where = f"{DESIGN}.{key}"
        if key in knobs:
            found += value_problems(where, knobs[key], value)
        elif key in RUNS and (knob := next((k for k in COUNTS if k in knobs), "")):
            found.append(Problem(where, f"there is no `{key}`; did you mean {knob}?", f"{DESIGN}.{knob}={value}"))
        elif key != "name":
            found.append(unknown(where, key, knobs, prefix=f"{DESIGN}."))
    return found


def _cast(design: Mapping[str, Any]) -> dict[str, Any]:
    knobs = {k.name: k for k in designs[str(design.get("name", designs.usual))].knobs}
    return {"name": designs.usual} | {k: knobs[k].cast(v) if k in knobs else v for k, v in design.items()}
