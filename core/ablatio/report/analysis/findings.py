"""Findings of a table of runs: compared arms in numbers and words.  All outputs are written from this."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ablatio.errors import UserError
from ablatio.report.analysis.arms import UNMATCHED, Arm, arms_of, choose_metric, higher_is_better, rate_is_free, tuned
from ablatio.report.analysis.sequential import Standing, standings_of, with_looks, with_standings
from ablatio.report.analysis.verdict import ArmFacts, Language, Verdict, verdict
from ablatio.report.read.curves import COLLAPSED
from ablatio.report.read.run import RATE
from ablatio.report.read.table import Table
from ablatio.report.statistics import (
    Better,
    Comparison,
    Correction,
    Factors,
    Method,
    Noise,
    Pair,
    compare,
    effects,
    holm,
    noise,
    smallest_difference,
)
from ablatio.sweep.study import Study, design_facts

UNITS = {"loss": "nats", "bpb": "bits/byte"}  # units of scores, by the last part of their name
CORRECTIONS = {"holm": "Holm", "dunnett": "Dunnett", "bh": "Benjamini-Hochberg", "none": ""}
LANGUAGES: tuple[Language, ...] = ("en", "zh")

ALL_PAIRS = 8  # arms; with more there are too many pairs for a page and a correction


def alpha_of(study: Study) -> float:
    """Significance level of the study: the share of studies without any effect that may name a winner."""
    return float(study.settings.get("alpha", 0.05))


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in the results table; unknown values are None.

    pair      comparison with the baseline
    residual  size key -> relative excess over the baseline's
    """

    arm: Arm
    n: int
    mean: float | None
    sd: float | None
    rank: float | None
    pair: Pair | None
    residual: Mapping[str, float]

    @property
    def unmatched(self) -> list[str]:
        """Sizes that exceed the baseline's: a win may be due to them."""
        return [k for k, share in self.residual.items() if share > UNMATCHED]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report says.  rows: the best first; arms without a value last."""

    table: Table
    metric: str
    better: str
    rows: Sequence[Row]
    comparison: Comparison | None
    factors: Factors | None
    verdicts: Mapping[Language, Verdict]

    @property
    def screening(self) -> bool:
        """True if the design estimates effects and its arms are not compared one by one."""
        return bool(design_facts(self.table.study)["screens"])

    @property
    def question(self) -> str:
        """The study's question."""
        return self.table.study.question

    @property
    def baseline(self) -> Row | None:
        """The baseline's row, if there is one."""
        return next((r for r in self.rows if r.arm.baseline), None)

    @property
    def reference(self) -> Row | None:
        """The arm whose spread is the noise floor: the baseline, else the arm with the most seeds."""
        return self.baseline or max(self.rows, key=lambda r: r.n, default=None)

    @property
    def noise(self) -> Noise | None:
        """Spread of the reference over its seeds; None for fewer than two."""
        found = noise(list(self.reference.arm.values.values())) if self.reference else None
        return found if found and found.n > 1 else None

    @property
    def pair_sd(self) -> float | None:
        """Median sd of the paired differences; None if no pair has one."""
        pairs = self.comparison.pairs if self.comparison else ()
        return median(spread) if (spread := [p.difference.sd for p in pairs if p.difference.sd > 0]) else None

    def smallest_visible(self, most: int = 20) -> dict[int, float]:
        """n -> smallest true difference between two arms that n seeds detect with power 0.8.

        The spread is that of these runs, and as uncertain as they leave it (`statistics.assurance`).
        """
        floor = self.noise
        if floor is None:
            return {}
        sd, alpha = self.pair_sd or floor.sd * math.sqrt(2), alpha_of(self.table.study)
        return {n: smallest_difference(n, sd, alpha=alpha, df=floor.n - 1) for n in range(2, most + 1)}

    def said(self, language: Language = "en") -> Sequence[str]:
        """Headline, the other sentences, and notes."""
        words = self.verdicts.get(language)
        if words is None:
            return ()
        others = [s.text for s in words.sentences if s.text != words.headline]
        return [words.headline, *others, *words.notes]

    @property
    def caption(self) -> str:
        """Caption of the table: how differences are paired, their intervals, correction and direction."""
        if self.comparison is None or not self.comparison.pairs:
            return ""
        against = "the baseline" if self.comparison.baseline else "every other arm"
        corrected = CORRECTIONS[self.comparison.correction]
        return (
            f"Differences are paired by seed, against {against}, with 95 % intervals; "
            f"p {f'after {corrected}' if corrected else 'not corrected'}; {self.metric}, "
            f"{'lower' if self.better == 'low' else 'higher'} is better."
        )


def find(
    table: Table,
    metric: str | None = None,
    baseline: str | None = None,
    *,
    correction: Correction = "holm",
    method: Method = "t",
) -> Findings:
    """Compare the arms of a table at the alpha of its study.

    correction  for many comparisons: holm, dunnett, bh (Benjamini-Hochberg, for screening), none
    method      of intervals and p: t, bootstrap (BCa), permutation
    """
    metric = choose_metric(table, metric)
    better = "high" if higher_is_better(table, metric) else "low"
    arms = arms_of(table, metric, baseline)
    base = next((a for a in arms if a.baseline), None)
    scored = {a.name: a.values for a in arms if a.values}
    against = base.name if base and base.name in scored else None
    factors = _factors(table, metric)
    comparison, standings = None, dict[str, Standing]()
    if factors and design_facts(table.study)["screens"]:
        pass  # effects are estimated from all arms together
    elif scored and (against or len(scored) <= ALL_PAIRS):
        if correction == "dunnett" and against is None:
            raise UserError(
                "--correction dunnett compares with a baseline, and there is none\n    try: --baseline "
                f"{shlex.quote(next(iter(arms)).label)}"
            )
        how: Better = "high" if better == "high" else "low"
        comparison = compare(
            scored, against, better=how, correction=correction, method=method, alpha=alpha_of(table.study)
        )
        standings = standings_of(table.study, comparison, scored, {a.name: a.label for a in arms})
        comparison = with_looks(comparison, standings, table.study)
    elif scored:
        table.notes.append(
            f"{len(scored)} arms without a baseline are listed, not compared; choose one with --baseline"
        )
    if table.several_data:
        table.notes.append(
            "the runs differ in text, tokenizer or token budget: differences are taken within each folder, "
            "and means mix the folders"
        )
    if (codes := len({run.code for run in table.counted if run.code})) > 1:
        table.notes.append(
            f"the runs were made by {codes} versions of ablatio's own code: a difference may come from the version"
        )
    table.notes += _collapses(arms)
    rows = [_row(a, base, comparison) for a in arms]
    sign = 1 if better == "low" else -1
    rows.sort(key=lambda r: math.inf if r.mean is None else sign * r.mean)
    unit = UNITS.get(metric.rsplit("/", 1)[-1], metric)
    words = _verdicts(comparison, unit, table, arms, standings) or _on_effects(factors, unit, alpha_of(table.study))
    return Findings(table, metric, better, rows, comparison, factors, words)


def _collapses(arms: Sequence[Arm]) -> list[str]:
    """Notes on policies that collapsed to one answer: their scores do not measure the method."""
    said = []
    for arm in arms:
        curves = [r.curves[COLLAPSED] for r in arm.runs if COLLAPSED in r.curves]
        first = [next(s for s, v in zip(*curve, strict=True) if v > 0) for curve in curves if any(curve[1])]
        if first:
            runs = f"{len(first)} of {len(curves)} runs" if len(curves) > 1 else "the run"
            said.append(f"{arm.label}: the policy of {runs} collapsed to one answer, first seen at step {min(first)}")
    return said


def _row(arm: Arm, base: Arm | None, comparison: Comparison | None) -> Row:
    found = [v for v in arm.values.values() if math.isfinite(v)]
    mean = sum(found) / len(found) if found else None
    sd = math.sqrt(sum((v - mean) ** 2 for v in found) / (len(found) - 1)) if mean is not None and found[1:] else None
    pair = rank = None
    if comparison:
        pair = next((p for p in comparison.pairs if p.a == arm.name), None) if comparison.baseline else None
        rank = next((a.rank for a in comparison.arms if a.label == arm.name and not math.isnan(a.rank)), None)
    residual = {}
    if base is not None and not arm.baseline:
        for key in ("parameters", "trainable", "flops_per_token", "tokens"):
            mine, other = arm.size(key), base.size(key)
            if mine is not None and other:
                residual[key] = mine / other - 1
    return Row(arm, len(found), mean, sd, rank, pair, residual)


def _factors(table: Table, metric: str) -> Factors | None:
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


def _on_effects(factors: Factors | None, unit: str, alpha: float) -> Mapping[Language, Verdict]:
    """Verdict of a screening design: main effects beyond chance, the largest first."""
    main = (
        sorted((t for t in factors.terms if len(t.factors) == 1), key=lambda t: -abs(t.difference)) if factors else []
    )
    if not main:
        return {}
    corrected = holm([t.p for t in main])
    found: dict[Language, Verdict] = {}
    for language in LANGUAGES:
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


def _verdicts(
    comparison: Comparison | None, unit: str, table: Table, arms: Sequence[Arm], standings: Mapping[str, Standing]
) -> Mapping[Language, Verdict]:
    if comparison is None:
        return {}
    free = rate_is_free(table)
    facts = {a.name: ArmFacts(a.size("parameters"), None if free else RATE in tuned(table, a)) for a in arms}
    plain = {n: verdict(comparison, facts=facts, unit=unit, language=n) for n in LANGUAGES}
    return {n: with_standings(said, table.study, standings, unit, n) for n, said in plain.items()}
