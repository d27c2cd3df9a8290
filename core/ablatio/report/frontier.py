"""Reward against KL: what each way of training a policy gains for the distance that it goes from its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablatio.report.arms import Arm
from ablatio.report.findings import Findings
from ablatio.report.run import Run

KL, REWARD, GOLD = "val/kl", "val/reward", "val/gold"
KIND = "alignment"  # whose numbers are the places on one line
Point = list[float]  # KL in nats, reward, gold
LINES = 24


def frontier(found: Findings) -> dict[str, Any] | None:
    """A line for each method: a point is an arm.  None where no two arms were scored by reward and KL.

    gold  whether something other than the reward that was learned from judged the answers as well
    path  of an arm, the mean over seeds at each validation
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(found.rows):
        runs = [r for r in row.arm.runs if r.done and r.role == "run" and KL in r.scores and REWARD in r.scores]
        if runs:
            points = [_point(r.scores) for r in runs]
            made = {"arm": number, "points": points, "mean": _mean(points), "path": _path(runs)}
            lines.setdefault(series(row.arm), []).append(made)
    if sum(map(len, lines.values())) < 2 or len(lines) > LINES:
        return None
    judged = [p for arms in lines.values() for a in arms for p in a["points"]]
    return {
        "gold": any(not math.isclose(reward, gold, abs_tol=1e-9) for _, reward, gold in judged),
        "lines": [
            {"name": name, "arms": sorted(arms, key=lambda a: a["mean"][0])}  # from near to far
            for name, arms in lines.items()
        ],
    }


def series(arm: Arm) -> str:
    """The settings of an arm less the numbers of its alignment: `ppo` of alignment=ppo alignment.kl_coef=0.1."""
    told = []
    for key, value in arm.settings.items():
        *sections, last = key.split(".")
        if not _is_number(value):
            told.append(value)
        elif KIND not in sections:
            told.append(f"{last}={value}")
    return " ".join(told) or KIND


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "null"
    return True


def _point(scores: Mapping[str, float]) -> Point:
    return [scores[KL], scores[REWARD], scores.get(GOLD, scores[REWARD])]


def _mean(points: Sequence[Point]) -> Point:
    return [sum(column) / len(column) for column in zip(*points, strict=True)]


def _path(runs: Sequence[Run]) -> list[Point]:
    """Where the arm stood at each validation that all its runs had."""
    each = [_validations(run) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in each)))
    return [_mean([one[step] for one in each]) for step in steps]


def _validations(run: Run) -> dict[int, Point]:
    curves = {name: dict(zip(*run.curves[name], strict=True)) for name in (KL, REWARD, GOLD) if name in run.curves}
    if KL not in curves or REWARD not in curves:
        return {}
    steps = set.intersection(*(set(curve) for curve in curves.values()))
    return {step: _point({name: curve[step] for name, curve in curves.items()}) for step in steps}
