"""Verdict across scales: does the gain of an arm shrink, hold or grow with the size or the length of the runs?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.scaling_data import SECTIONS
from ablatio.report.analysis.scaling_words import WORDS, Words
from ablatio.report.numbers import p_said, short
from ablatio.report.statistics import holm
from ablatio.report.statistics.scale_trend import HOLDS, Estimate, Kind, Trend, predict, trends
from ablatio.report.statistics.scaling_law import APART, different

RATIO = 1.5  # of parameters or tokens between the ends of an axis, from which it is an axis of scale
SCALES = {"N": "parameters", "D": "tokens"}


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain of one arm over another at one size, by seed; positive: the arm is better."""

    n: float
    d: float
    by_seed: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class ArmTrend:
    """Trend of one arm's gain over the reference along one scale.

    p         of the slope, after Holm over all arms and scales
    diverged  runs of the two arms that diverged: a gain of the survivors is no evidence, so nothing is said of it
    """

    arm: str
    base: str
    trend: Trend
    p: float
    kind: Kind
    diverged: int
    gains: Sequence[Gain]


def scale_axes(arms: Sequence[Arm]) -> list[str]:
    """Settings that change the parameters or tokens by RATIO or more while all others are fixed."""
    found = []
    for key in dict.fromkeys(k for a in arms for k in a.settings if k.split(".")[0] in SECTIONS):
        groups: dict[tuple[tuple[str, str], ...], list[Arm]] = {}
        for arm in arms:
            groups.setdefault(_without(arm, [key]), []).append(arm)
        if any(_ratio(group, size) >= RATIO for group in groups.values() for size in SCALES.values()):
            found.append(key)
    return found


def _without(arm: Arm, keys: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((k, v) for k, v in arm.settings.items() if k not in keys)


def _ratio(arms: Sequence[Arm], size: str) -> float:
    known = [v for a in arms if (v := a.size(size))]
    return max(known) / min(known) if known else 1.0


def families(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Arms grouped by all settings but the size and length: name -> its sizes; the reference first.

    The reference is the family of the baseline, else the first.  Empty without an axis of scale.
    """
    axes = scale_axes(arms)
    if not axes:
        return {}
    made: dict[tuple[tuple[str, str], ...], list[Arm]] = {}
    for arm in arms:
        made.setdefault(_without(arm, axes), []).append(arm)
    # The sort is stable: without a baseline the first family stays the reference.
    ordered = sorted(made.items(), key=lambda item: not any(a.baseline for a in item[1]))
    seen: dict[str, set[str]] = {}
    for settings, _ in ordered:
        for k, v in settings:
            seen.setdefault(k, set()).add(v)
    return {_name(settings, seen): sizes for settings, sizes in ordered}


def _name(settings: Sequence[tuple[str, str]], seen: Mapping[str, set[str]]) -> str:
    """The settings that differ, without their keys if only words differ."""
    told = [(k, v) for k, v in settings if len(seen[k]) > 1] or list(settings)
    words = all(v[:1].isalpha() and v not in ("true", "false", "null", "none") for _, v in told) and len(told) == 1
    return " ".join(v if words else f"{k}={v}" for k, v in told) or "all"


def arm_trends(arms: Sequence[Arm], better: str = "low", alpha: float = 0.05) -> list[ArmTrend]:
    """Return the trend of each family's gain over the reference; empty if there are no sizes or no arms to compare."""
    grouped = families(arms)
    axes = scale_axes(arms)
    (base, reference), *others = grouped.items() or [("", [])]
    made: list[ArmTrend] = []
    for name, members in others:
        gains, diverged = _gains(reference, members, axes, better)
        scales = _scales(gains)
        seeds = sorted(set.intersection(*(set(g.by_seed) for g in gains))) if gains else []
        table = [[g.by_seed[s] for g in gains] for s in seeds]
        for trend in trends(scales, table) if scales else ():
            # A nan still counts as a comparison in Holm's correction.
            made.append(ArmTrend(name, base, trend, math.nan if diverged else trend.slope.p, "open", diverged, gains))
    corrected = holm([t.p for t in made])
    return [
        replace(t, p=p, kind="not testable" if t.diverged else t.trend.verdict(p, alpha))
        for t, p in zip(made, corrected, strict=True)
    ]


def _gains(
    reference: Sequence[Arm], members: Sequence[Arm], axes: Sequence[str], better: str
) -> tuple[list[Gain], int]:
    """Gains at the sizes that both families have, the smallest first; and the number of diverged runs among them."""
    sign = 1 if better == "low" else -1
    at = {tuple(a.settings.get(k) for k in axes): a for a in members}
    found, diverged = [], 0
    for base in reference:
        arm = at.get(tuple(base.settings.get(k) for k in axes))
        n, d = base.size("parameters"), base.size("tokens")
        if arm is None or not n or not d:
            continue
        diverged += base.count("diverged") + arm.count("diverged")
        both = [b for b in base.values if b in arm.values]
        by_seed = {b: sign * (base.values[b] - arm.values[b]) for b in both}
        found.append(Gain(n, d, {b: v for b, v in by_seed.items() if math.isfinite(v)}))
    return sorted((g for g in found if g.by_seed), key=lambda g: (g.n, g.d)), diverged


def _scales(gains: Sequence[Gain]) -> dict[str, list[float]]:
    """The scales that vary: N, D, or both unless they grow together."""
    import numpy as np

    made = {"N": [g.n for g in gains], "D": [g.d for g in gains]}
    made = {k: v for k, v in made.items() if len(v) > 1 and different(np.asarray(v)) > 1 and max(v) / min(v) >= APART}
    # In a compute-optimal series tokens follow parameters: one axis says it all, and two could not be told apart.
    if len(made) == 2 and abs(np.corrcoef(*np.log(list(made.values())))[0, 1]) > 0.99:
        made.pop("D")
    return made


def predicted_gain(found: ArmTrend, n: float, d: float) -> Estimate:
    """Gain on the line at n parameters and d tokens, however far."""
    seeds = sorted(set.intersection(*(set(g.by_seed) for g in found.gains)))
    table = [[g.by_seed[s] for g in found.gains] for s in seeds]
    scales = _scales(found.gains)
    return predict(scales, table, {k: v for k, v in (("N", n), ("D", d)) if k in scales})


def extrapolated(found: Sequence[ArmTrend], n: float, d: float, unit: str, language: str = "en") -> list[str]:
    """Return a sentence per arm: its predicted gain at n parameters and d tokens, or why there is no prediction."""
    words, said = WORDS["zh" if language == "zh" else "en"], []
    for arm in dict.fromkeys(t.arm for t in found):
        own = [t for t in found if t.arm == arm and not t.diverged and not math.isnan(t.trend.slope.p)]
        # Rounding must not refuse the very end of the reach.
        far = [t for t in own if (n if t.trend.over == "N" else d) > t.trend.reach * t.trend.ends[1] * (1 + 1e-9)]
        for t in far[:1]:
            said.append(words["too far"].format(
                arm=arm, base=t.base, reach=f"{t.trend.reach:.2g}", scale=words[t.trend.over],
                end=short(t.trend.ends[1], 3),
            ))  # fmt: skip
        if own and not far:
            figures = _figures(predicted_gain(own[0], n, d))
            said.append(words["at"].format(
                arm=arm, base=own[0].base, figures=figures, unit=unit, n=short(n, 3), d=short(d, 3)
            ))  # fmt: skip
    return said


def sentences(found: Sequence[ArmTrend], unit: str, language: str = "en") -> list[str]:
    """One sentence per trend: the verdict with its interval, and the check on the largest size."""
    words = WORDS["zh" if language == "zh" else "en"]
    return [_sentence(t, unit, words) for t in found]


def _sentence(found: ArmTrend, unit: str, words: Words) -> str:
    trend = found.trend
    names = {"arm": found.arm, "base": found.base, "scale": words[trend.over], "n": trend.seeds}
    if found.diverged:
        return words["diverged"].format(k=found.diverged, **names)
    if found.kind == "not testable":
        return words["not testable"].format(**names)
    gain = words["gain" if trend.gain.mean >= 0 else "disadvantage"]
    low, high = (short(v, 3) for v in trend.ends)
    text = words[found.kind].format(gain=gain, share=f"{HOLDS:.0%}", **names)
    ends = words["ends"].format(
        first=_figures(trend.first), last=_figures(trend.last), slope=_figures(trend.slope), low=low, high=high,
        unit=unit, p=p_said(found.p), n=words["seeds" if trend.seeds > 1 else "one seed"].format(n=trend.seeds),
    )  # fmt: skip
    return f"{text}{words['colon']}{ends}{_hold_out(trend, unit, words)}{words['stop']}"


def _hold_out(trend: Trend, unit: str, words: Words) -> str:
    held = trend.hold_out
    if held is None:
        return words["mark"] + words["two sizes"].format(scale=words[trend.over])
    if math.isnan(held.error.low):
        return ""
    key = "not predicted" if not held.passed else "vague" if trend.vague else "predicted"
    return words["mark"] + words[key].format(
        at=short(held.at, 3), predicted=f"{held.predicted:+.4f}", measured=f"{held.measured:+.4f}", unit=unit,
        error=_figures(held.error), reach=f"{trend.reach:.2g}",
    )  # fmt: skip


def _figures(x: Estimate) -> str:
    """`+0.0210 [+0.0120, +0.0300]`; at least two digits of the interval's width."""
    places = 4 if math.isnan(x.low) else min(6, max(3, 1 - math.floor(math.log10(max(x.high - x.low, 1e-9)))))
    interval = "" if math.isnan(x.low) else f" [{x.low:+.{places}f}, {x.high:+.{places}f}]"
    return f"{x.mean:+.{places}f}{interval}"


def trend_chart(found: ArmTrend) -> dict[str, Any]:
    """Numbers of the chart of one trend."""
    trend = found.trend
    points = [[g.n if trend.over == "N" else g.d, v] for g in found.gains for v in g.by_seed.values()]
    ends = [[x, e.mean, e.low, e.high] for x, e in zip(trend.ends, (trend.first, trend.last), strict=True)]
    return {
        "arm": found.arm,
        "base": found.base,
        "over": trend.over,
        "kind": found.kind,
        "points": points,
        "ends": ends,
    }
