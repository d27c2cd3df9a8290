"""Arms of a table of runs: name, scores by seed, size and cost."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from statistics import median
from typing import Any

from ablatio.errors import UserError
from ablatio.report.escape import visible
from ablatio.report.read.notes import note
from ablatio.report.read.run import RATE, Run
from ablatio.report.read.table import Table
from ablatio.report.rerun_command import of_arm
from ablatio.sweep.study import design_facts, label_of

LOSS = "val/loss"
HIGHER = ("accuracy", "reward", "win_rate", "score", "margin", "match")  # endings of scores where higher is better
CONDITIONS = (
    "train.steps", "train.batch_size", "train.accumulate", "data.length", "tokenizer.name", "tokenizer.vocab_size",
)  # fmt: skip
SIZES = ("parameters", "trainable", "non_embedding", "flops_per_token", "tokens", "steps")
PATH = re.compile(r"[\w.~-]*(/[\w.-]+)+/?")
COSTS = ("seconds", "step_seconds", "memory")
BASELINE = "baseline"  # name of one with more than MOST_SETTINGS settings, in a design of single changes
MOST_SETTINGS = 3


@dataclass(slots=True)
class Arm:
    """One cell of the design and its runs.

    label     as written: `norm=rmsnorm position=rope`
    name      the shortest label that tells it from the other arms
    conditions  steps, batch, row length, tokenizer of its runs, if runs of the same settings differ in them: these runs
              are several arms, and only arms of equal conditions are compared
    values    block -> score; nan for a diverged run, no entry for an unfinished or failed one.  A block is a seed, or a
              seed within one folder if the folders hold different data
    counted   block -> the run that counts there: the first one, if it is there twice
    """

    label: str
    name: str
    settings: Mapping[str, str]
    runs: list[Run]
    baseline: bool = False
    conditions: Mapping[str, str] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    counted: dict[int, Run] = field(default_factory=dict)

    def scores(self, metric: str) -> dict[int, float]:
        """Another score of the runs that count, as `values`; nan where a run has none."""
        return {
            block: run.scores.get(metric, math.nan) if run.done else math.nan for block, run in self.counted.items()
        }

    def count(self, state: str) -> int:
        """Number of runs in this state."""
        return sum(1 for r in self.runs if r.state == state)

    def size(self, key: str) -> float | None:
        """Parameters, FLOPs or tokens, from any run: they do not depend on the seed."""
        return next(
            # A run that was stopped has seen fewer tokens than its arm has; its parameters are those of all.
            (r.size[key] for r in self.runs if key in r.size and (r.done or key not in ("tokens", "steps"))),
            None,
        )

    def cost(self, key: str) -> float | None:
        """Median over the finished runs."""
        found = [r.cost[key] for r in self.runs if r.done and key in r.cost]
        return median(found) if found else None

    @property
    def rate(self) -> float | None:
        """Learning rate of the arm, if its runs have one."""
        return next((r.rate for r in self.runs if r.rate is not None), None)

    @property
    def cell(self) -> str:
        """Its label in the study, where what was tuned or matched for it stands."""
        return label_of(self.settings)

    @property
    def again(self) -> str:
        """The command that repeats all of its runs."""
        return of_arm([r.command for r in self.runs])


def arms_of(table: Table, metric: str, baseline: str | None = None) -> list[Arm]:
    """Group a table's runs into arms; the baseline (`--baseline norm=rmsnorm`, else the study's) is marked."""
    grouped: dict[str, list[Run]] = {}
    for run in table.runs:
        # A damaged folder that does not name its arm belongs to none; the table lists it.
        if run.role == "run" and (run.arm or run.state != "damaged"):
            grouped.setdefault(label_of(run.arm), []).append(run)
    arms = _by_conditions(grouped)
    _mark(arms, table, baseline)
    _name(arms, bool(design_facts(table.study)["single_changes"]))
    _fill(arms, table, metric)
    return arms


def _by_conditions(grouped: Mapping[str, Sequence[Run]]) -> list[Arm]:
    """Make one arm of the runs of a label, or several if they had different budgets or tokenizers.

    Seeds of a short and of a long run of one arm are not two samples: they share initial weights and data order.
    """
    keys = dict.fromkeys(
        key
        for runs in grouped.values()
        for key in CONDITIONS
        if len({_value_at(r.config, key) for r in runs if r.config}) > 1
    )
    arms = []
    for runs in grouped.values():
        found: dict[tuple[str, ...], list[Run]] = {}
        whole = [tuple(_value_at(r.config, key) for key in keys) for r in runs if r.config]
        for run in runs:
            # A run that failed before it wrote its config counts where the others of its arm do.
            place = tuple(_value_at(run.config, key) for key in keys) if run.config else whole[0] if whole else ()
            found.setdefault(place, []).append(run)
        for place, some in found.items():
            conditions = dict(zip(keys, place, strict=False))
            label = label_of({**some[0].arm, **conditions})
            arms.append(Arm(label, label, some[0].arm, some, conditions=conditions))
    return arms


def _value_at(config: Mapping[str, Any], key: str) -> str:
    """Value that a config has under `train.steps`, as text; empty if it has none."""
    node: Any = config
    for word in key.split("."):
        node = node.get(word) if isinstance(node, Mapping) else None
    return "" if node is None else str(node)


def _fill(arms: Sequence[Arm], table: Table, metric: str) -> None:
    blocks: dict[tuple[str, int], int] = {}
    several = table.several_data
    for arm in arms:
        for run in arm.runs:
            if run.state != "diverged" and not (run.done and metric in run.scores):
                continue
            # Folders with different data are paired within each: seed 1 of two texts is not one block.
            block = blocks.setdefault((run.group, run.seed), len(blocks)) if several else run.seed
            if block in arm.counted:
                where = visible(run.folder)
                told = note("twice", arm=arm.label, seed=run.seed, folder=where)
                table.notes += [told] if told not in table.notes else []
            else:
                arm.counted[block] = run
        arm.values = arm.scores(metric)


def choose_metric(table: Table, asked: str | None) -> str:
    """Return the name of the compared score: `asked`, or the task's main score, or one that all runs have."""
    common = [set(r.scores) for r in table.counted]
    known = sorted(set.intersection(*common)) if common else []
    if asked is None:
        main = next((str(r.main["name"]) for r in table.counted if "name" in r.main), LOSS)
        return main if main in known or not known else known[0]
    if known and asked not in known:
        likely = next(iter(get_close_matches(asked, known, 1)), known[0])
        raise UserError(
            f"no score {asked} is in every run that is done; there are {', '.join(known)}\n    try: --metric {likely}"
        )
    return asked


def higher_is_better(table: Table, metric: str) -> bool:
    """True if a higher score is better: as task or metric declare, else by the end of the name."""
    said = next((r.main.get("better") for r in table.counted if r.main.get("name") == metric), None)
    said = said or next((r.measured[metric].get("better") for r in table.counted if metric in r.measured), None)
    return said == "higher" if said else metric.rsplit("/", 1)[-1].endswith(HIGHER)


def tuned(table: Table, arm: Arm) -> Mapping[str, str]:
    """Settings that were tuned for this arm."""
    return table.study.tuned.get(arm.cell, {})


def tuned_to_the_edge(table: Table, arm: Arm) -> Mapping[str, str]:
    """Return `setting=value` -> smallest or largest, for tuned values at an end of those that were tried."""
    trials = [r for r in table.runs if r.role == "trial" and label_of(r.arm) == arm.cell]
    found = {}
    for key, value in tuned(table, arm).items():
        tried = {v for r in trials if (v := _number(_value_at(r.config, key))) is not None}
        chosen = _number(str(value))
        if chosen is not None and len(tried) > 1 and (chosen <= min(tried) or chosen >= max(tried)):
            found[f"{key}={value}"] = "smallest" if chosen <= min(tried) else "largest"
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def matched(table: Table, arm: Arm) -> str:
    """Settings that `match=` chose for this arm, and the remaining difference: `model.d_ff=341, params +0.02%`."""
    found = table.study.matched.get(arm.cell)
    if not found:
        return ""
    changed = " ".join(f"{k}={v}" for k, v in found["set"].items())
    left = {"what": found["what"], "residual": f"{found['residual']:+.2%}"}
    return note("matched", changed=changed, **left) if changed else note("matched as it is", **left)


def rate_is_free(table: Table) -> bool:
    """True if the learning rate is an axis of the study."""
    return any(a.key == RATE for a in table.study.axes)


def _mark(arms: Sequence[Arm], table: Table, asked: str | None) -> None:
    if asked is None:
        base = table.study.baseline
        chosen = [a for a in arms if base is not None and dict(a.settings) == dict(base)]
    else:
        wanted = set(asked.split())
        found = [a for a in arms if wanted <= {*a.label.split(), *a.settings.values()}]
        # `rmsnorm` alone means the arm that is just that, although longer labels contain it, too.
        chosen = [a for a in found if wanted in (set(a.label.split()), set(a.settings.values()))] or found
        if len({a.cell for a in chosen}) != 1:
            known = [a.label for a in (found or arms)[:20]]
            likely = next(iter(get_close_matches(asked, known, 1, 0.3)), known[0])
            raise UserError(
                "\n    ".join([f"--baseline {asked!r} names {len(found)} arms, one was expected", *known])
                + f"\n    try: --baseline {shlex.quote(likely)}"
            )
    if chosen:  # of several budgets, the one with most finished runs, then the largest
        max(chosen, key=lambda a: (a.count("done"), a.size("tokens") or 0)).baseline = True


def _name(arms: Sequence[Arm], single_changes: bool) -> None:
    """Shorten the names: values where they are unambiguous (`swiglu`), with their key elsewhere (`n_layers=4`).

    In a design of single changes a name holds only what differs from the baseline, and a baseline of many settings is
    called BASELINE.  Arms that would share a name keep their whole label.
    """
    whole = [{**a.settings, **a.conditions} for a in arms]
    seen = {k: {of[k] for of in whole if k in of} for k in dict.fromkeys(k for of in whole for k in of)}
    varies = [k for k, values in seen.items() if len(values) > 1 or any(k not in of for of in whole)]
    base = next((of for a, of in zip(arms, whole, strict=True) if a.baseline), None)
    for arm, settings in zip(arms, whole, strict=True):
        told = {k: v for k, v in settings.items() if k in varies} or dict(settings)
        if base is not None and single_changes:
            told = {k: v for k, v in told.items() if base.get(k) != v} or told
        arm.name = " ".join(_said(k, v, seen, len(varies) == 1) for k, v in told.items()) or arm.label
        if arm.baseline and single_changes and len(told) > MOST_SETTINGS:
            arm.name = BASELINE
    names = [a.name for a in arms]
    for arm in arms:
        if names.count(arm.name) > 1:
            arm.name = arm.label


def short_names(arms: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Map the label of each arm to the name that a report gives it: the settings in which it differs from others."""
    made = [Arm(label_of(arm), label_of(arm), arm, []) for arm in arms]
    _name(made, single_changes=False)
    return {arm.label: arm.name for arm in made}


def _said(key: str, value: str, seen: Mapping[str, set[str]], alone: bool) -> str:
    """One setting in a name: its value if no other setting has that word (`none` is too common, `4` is no word)."""
    word = value[:1].isalpha() and value not in ("true", "false", "null", *(() if alone else ("none",)))
    if word and sum(value in values for values in seen.values()) == 1 and " " not in value:
        return value
    return f"{shortest_key(key, seen)}={_shortest_value(value, seen[key])}"


def shortest_key(key: str, keys: Collection[str]) -> str:
    """The last words of a key that tell it from the other keys: `lr`, `sft.optimizer.lr`; at worst the whole key."""
    words = key.split(".")
    ends = (".".join(words[-n:]) for n in range(1, len(words)))
    return next((end for end in ends if sum(f".{k}".endswith(f".{end}") for k in keys) == 1), key)


def _shortest_value(value: str, values: Collection[str]) -> str:
    """The file name of a path, if the other values have other ones; other values as they are."""
    if not PATH.fullmatch(value):
        return value
    name = value.rstrip("/").rsplit("/", 1)[-1]
    return name if name and sum(v.rstrip("/").rsplit("/", 1)[-1] == name for v in values) == 1 else value
