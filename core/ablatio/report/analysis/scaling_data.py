"""Data for scaling laws, read from run folders: sizes, tokens, FLOPs, epochs, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from ablatio.report.read.run import Run, inner
from ablatio.report.statistics.scaling_law import LearningCurve

SECTIONS = ("model", "size", "preset", "train", "data")  # whose settings change the size or length of a run
EXPERTS = "experts"  # knob that says how many experts a layer has, whichever part has it


def parameters(run: Run, count: str) -> float:
    """Number of parameters: all, those outside the embedding tables, or those that one token uses (`active`)."""
    if count == "active":
        found = inner(run.manifest, "size").get("active")
        return float(found) if isinstance(found, int | float) else run.size["parameters"]
    return run.size[count]


def unique_tokens(run: Run) -> float | None:
    """Tokens of the training text, each counted once; None if the run does not say."""
    found = inner(inner(run.manifest, "data"), "train").get("tokens")
    return float(found) if isinstance(found, int | float) and found > 0 else None


def epochs(run: Run) -> float | None:
    """How often the run read its training text; None if it does not say."""
    unique = unique_tokens(run)
    return run.size["tokens"] / unique if unique and "tokens" in run.size else None


def experts(run: Run) -> float:
    """Number of experts of the run's layers; 1 for a dense model."""
    knobs = [s[EXPERTS] for s in run.config.values() if isinstance(s, dict) and isinstance(s.get(EXPERTS), int | float)]
    return float(max(knobs, default=1))


def flops(run: Run, count: str) -> float:
    """Training FLOPs as counted for the run, else 6 N D."""
    return run.size.get("flops", 6 * parameters(run, count) * run.size["tokens"])


def columns(runs: Sequence[Run], law: str, count: str) -> dict[str, list[float]]:
    """The columns that a law needs, one value per run.

    Raises:
        ValueError: the runs do not say how many unique tokens they had.
    """
    made = {"N": [parameters(r, "active" if law == "routed" else count) for r in runs]}
    made["D"] = [r.size["tokens"] for r in runs]
    if law == "compute":
        made["C"] = [flops(r, count) for r in runs]
    if law == "routed":
        made["experts"] = [experts(r) for r in runs]
    if law == "repeated":
        unique = [unique_tokens(r) for r in runs]
        if None in unique:
            raise ValueError("the law of repeated tokens needs the size of the training text, which some runs lack")
        made["U"] = [u for u in unique if u is not None]
    return made


def flops_per_parameter_and_token(runs: Sequence[Run], count: str) -> float:
    """Median over the runs of FLOPs / (N D); 6 in the papers."""
    return median(flops(r, count) / parameters(r, count) / r.size["tokens"] for r in runs)


def learning_curves(runs: Sequence[Run], metric: str, count: str) -> list[LearningCurve]:
    """Learning curve of each run over its FLOPs, from the validations after the first step."""
    made = []
    for run in runs:
        steps, values = run.curves.get(metric, ([], []))
        last = run.size.get("steps") or max(steps, default=0)
        # Steps cost the same, so that the share of the steps is that of the FLOPs; the loss at step 0 has no budget.
        points = [(s / last, v) for s, v in zip(steps, values, strict=True) if s > 0 and v > 0]
        if len(points) > 1:
            share, losses = (np.array(column) for column in zip(*points, strict=True))
            made.append(LearningCurve(parameters(run, count), share * flops(run, count), losses))
    return made
