"""Effects of settings that vary together, estimated from all arms at once, and the verdict on them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ablatio.report.analysis.verdict import Language, Verdict
from ablatio.report.read.table import Table
from ablatio.report.statistics import Factors, effects, holm
from ablatio.sweep.study import design_facts


def fitted_effects(table: Table, metric: str) -> Factors | None:
    """Effects of settings, if two or more vary together."""
    runs = [r for r in table.counted if metric in r.scores]
    keys = dict.fromkeys(k for r in runs for k in r.arm)
    axes = [k for k in keys if len({r.arm.get(k) for r in runs}) > 1]
    if len(axes) < 2 or table.several_data or not design_facts(table.study)["factors"]:
        return None
    try:
        fit = effects([r.arm for r in runs], [r.seed for r in runs], [r.scores[metric] for r in runs])
    except ValueError:
        return None
    return fit if fit.terms else None


def effects_verdict(factors: Factors | None, unit: str, alpha: float) -> Mapping[Language, Verdict]:
    """Verdict of a screening design: main effects beyond chance, the largest first."""
    main = (
        sorted((t for t in factors.terms if len(t.factors) == 1), key=lambda t: -abs(t.difference)) if factors else []
    )
    if not main:
        return {}
    corrected = holm([t.p for t in main])
    found: dict[Language, Verdict] = {}
    for language in WORDS:
        words = WORDS[language]
        sure: list[str] = []
        rest: list[str] = []
        for term, p in zip(main, corrected, strict=True):
            text = words["effect"].format(
                factor=term.factors[0], low=term.effects[0].levels[0], high=term.effects[-1].levels[0],
                size=f"{term.difference:+.3f}", unit=unit, p="< 0.001" if p < 0.001 else f"= {p:.3f}",
            )  # fmt: skip
            (sure if p <= alpha else rest).append(text if not math.isnan(p) else term.factors[0])
        headline = words["some"].format(k=len(sure), m=len(main)) if sure else words["none"].format(m=len(main))
        notes = [words["rest"].format(names=words["comma"].join(rest))] if rest and sure else []
        found[language] = Verdict(headline, (), (*sure, *notes))
    return found


WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "effect": "{factor}, from {low} to {high}: {size} {unit}, Holm p {p}",
        "some": "{k} of {m} settings matter.",
        "none": "None of {m} settings is resolved; the half-normal plot shows which stand out.",
        "rest": "Not resolved: {names}.",
        "comma": "; ",
    },
    "zh": {
        "effect": "{factor}，从 {low} 到 {high}：{size} {unit}，Holm p {p}",
        "some": "{m} 个设置中有 {k} 个起作用。",
        "none": "{m} 个设置均未能分辨；半正态图显示哪些突出。",
        "rest": "未能分辨：{names}。",
        "comma": "；",
    },
}
