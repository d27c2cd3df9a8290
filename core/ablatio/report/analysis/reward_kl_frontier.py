"""Reward against KL: what each way of training a policy gains per distance from its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.findings import Findings
from ablatio.report.read.run import Run
from ablatio.report.words import Language, say

KL, REWARD, GOLD = "val/kl", "val/reward", "val/gold"
KIND = "alignment"  # numeric knobs of this kind are points of one line
Point = list[float]  # KL in nats, reward, gold
LINES = 24
AT_START = 1e-4  # nats; below this KL the policy still equals its reference


def frontier(found: Findings) -> dict[str, Any] | None:
    """Return one line per method, one point per arm; None unless two arms were scored by reward and KL.

    gold   True if a judge other than the learned reward scored the answers as well
    path   of an arm: mean over seeds at each validation
    equal  score of each method at the largest KL that all methods reach
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    ways: dict[str, dict[int, list[Point]]] = {}
    origins: dict[int, Point] = {}
    for number, row in enumerate(found.rows):
        runs = [r for r in row.arm.runs if r.done and r.role == "run" and KL in r.scores and REWARD in r.scores]
        if runs:
            points = [_point(r.scores) for r in runs]
            made = {"arm": number, "points": points, "mean": _mean(points), "path": _path(runs)}
            lines.setdefault(series(row.arm), []).append(made)
            for run, point in zip(runs, points, strict=True):
                ways.setdefault(series(row.arm), {}).setdefault(run.seed, []).append(point)
                # A policy that starts at its reference has measured the reference's score: the point at KL 0.
                if (first := _validations(run).get(0)) and abs(first[0]) < AT_START:
                    origins[run.seed] = first
    if sum(map(len, lines.values())) < 2 or len(lines) > LINES:
        return None
    judged = [p for arms in lines.values() for a in arms for p in a["points"]]
    return {
        "gold": any(not math.isclose(reward, gold, abs_tol=1e-9) for _, reward, gold in judged),
        "equal": _equal(ways, origins),
        "lines": [
            {"name": name, "arms": sorted(arms, key=lambda a: a["mean"][0])}  # from near to far
            for name, arms in lines.items()
        ],
    }


def _equal(ways: Mapping[str, Mapping[int, Sequence[Point]]], origins: Mapping[int, Point]) -> dict[str, Any] | None:
    """Score of each method at the largest KL that all reach with every seed, best first: [name, mean, sd, seeds].

    Between two points of a seed, and from the reference to the first point, the gold score is interpolated linearly in
    the square root of the KL.
    """
    if len(ways) < 2:
        return None
    # Beyond it a method would be extrapolated, and rewards bend down there (over-optimization, arXiv:2210.10760).
    kl = min(max(point[0] for point in points) for seeds in ways.values() for points in seeds.values())
    found = []
    for name, seeds in ways.items():
        values = [v for n, p in seeds.items() if (v := _at(kl, [*p, *filter(None, [origins.get(n)])])) is not None]
        if values:
            mean = sum(values) / len(values)
            sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if values[1:] else None
            found.append([name, mean, sd, len(values)])
    return {"kl": kl, "methods": sorted(found, key=lambda line: -line[1])} if len(found) > 1 else None


def _at(kl: float, points: Sequence[Point]) -> float | None:
    """Interpolate the gold score at this KL; None outside the range of the points."""
    # In the square root, in which rewards are close to linear near the reference (arXiv:2210.10760).
    known = sorted((math.sqrt(max(0.0, point[0])), point[2]) for point in points)
    x = math.sqrt(max(0.0, kl))
    for (a, low), (b, high) in pairwise(known):
        if a <= x <= b:
            return low + (high - low) * ((x - a) / (b - a) if b > a else 0.0)
    return next((value for place, value in known if place == x), None)


def in_words(made: Mapping[str, Any] | None, language: Language = "en") -> str:
    """Describe the scores at equal KL in one sentence; empty if there are none."""
    equal = made and made["equal"]
    if not made or not equal:
        return ""
    told = (f"{name} {mean:.2f}{'' if sd is None else f' ± {sd:.2f}'}" for name, mean, sd, _ in equal["methods"])
    what = say("frontier_gold" if made["gold"] else "frontier_reward", language)
    listed = say("comma", language).join(told)
    return say("frontier_equal", language, kl=f"{equal['kl']:.3g}", what=what, list=listed)


def series(arm: Arm) -> str:
    """Name the method of an arm: its settings without the numbers of its alignment (`ppo`)."""
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
    """Mean point of the arm at each validation that all of its runs had."""
    each = [_validations(run) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in each)))
    return [_mean([one[step] for one in each]) for step in steps]


def _validations(run: Run) -> dict[int, Point]:
    curves = {name: dict(zip(*run.curves[name], strict=True)) for name in (KL, REWARD, GOLD) if name in run.curves}
    if KL not in curves or REWARD not in curves:
        return {}
    steps = set.intersection(*(set(curve) for curve in curves.values()))
    return {step: _point({name: curve[step] for name, curve in curves.items()}) for step in steps}
