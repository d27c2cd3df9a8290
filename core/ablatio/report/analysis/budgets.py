"""Budgets of arms (parameters, text, compute, updates, time), and which of two arms had more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ablatio.report.analysis.arms import Arm
from ablatio.report.read.run import Run, inner

MATCHED = 0.01  # relative difference up to which two budgets are equal
TIME = "seconds"
FOLLOWS = 0.02  # difference of logarithms up to which a budget follows from others
MATCHED_TIME = 0.2  # of wall time, which is measured
# Budgets of one line measure the same thing: a sentence names the first of the line that differs.
BUDGETS = (("tokens", "bytes", "epochs"), ("parameters", "trainable"), ("flops",), ("steps",), (TIME,))


@dataclass(frozen=True, slots=True)
class More:
    """Arm 0 or 1 of a pair was given `ratio` times as much of a budget as the other."""

    budget: str
    arm: int
    ratio: float

    @property
    def log(self) -> float:
        """Logarithm of the first arm's amount over the second's."""
        return math.log(self.ratio) * (1 if self.arm == 0 else -1)


def tolerance(budget: str) -> float:
    """Relative difference up to which a budget counts as equal."""
    return MATCHED_TIME if budget == TIME else MATCHED


def differing(first: Mapping[str, float], second: Mapping[str, float]) -> list[More]:
    """Return the budgets that two arms have in different amounts, the largest ratio first; wall time comes last.

    What follows from others is left out: steps in proportion to the tokens, FLOPs to tokens times parameters.
    """
    found = {more.budget: more for line in BUDGETS if (more := _first_of(line, first, second))}
    tokens, size = (found[b].log if b in found else 0.0 for b in ("tokens", "parameters"))
    for budget, expected in (("steps", tokens), ("flops", tokens + size)):
        if budget in found and expected and abs(found[budget].log - expected) <= FOLLOWS:
            del found[budget]
    return sorted(found.values(), key=lambda m: (m.budget == TIME, -m.ratio))


def _first_of(line: Sequence[str], first: Mapping[str, float], second: Mapping[str, float]) -> More | None:
    for budget in line:
        a, b = first.get(budget), second.get(budget)
        if a and b and max(a, b) / min(a, b) > 1 + tolerance(budget):
            return More(budget, 0 if a > b else 1, max(a, b) / min(a, b))
    return None


def budgets_of(arm: Arm) -> dict[str, float]:
    """Return the budgets of an arm: medians over its finished runs, for policies sample texts of any length."""
    done = [r for r in arm.runs if r.done]
    known = {k: [r.size[k] for r in done if k in r.size] for k in ("tokens", "steps", "flops")}
    found = {k: median(v) if v else None for k, v in known.items()}
    found |= {k: arm.size(k) for k in ("parameters", "trainable")}
    # Runs without a PEFT method record no number of their own: all of their weights are trained.
    found["trainable"] = found["trainable"] or found["parameters"]
    found[TIME] = arm.cost(TIME)
    if found["tokens"]:
        found |= _text(done[0], found["tokens"])
    return {k: float(v) for k, v in found.items() if v}


def _text(run: Run, tokens: float) -> dict[str, float]:
    """Bytes of text that so many tokens stand for, and passes over the training text."""
    train = inner(inner(run.manifest, "data"), "train")
    known, size = train.get("tokens"), train.get("bytes")
    if not isinstance(known, int | float) or not known:
        return {}
    text = {"bytes": tokens * size / known} if isinstance(size, int | float) and math.isfinite(size) else {}
    return {**text, "epochs": tokens / known}
