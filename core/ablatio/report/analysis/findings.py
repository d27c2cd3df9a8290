"""Findings of a table of runs: compared arms in numbers and words.  All outputs are written from this."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from ablatio.errors import UserError
from ablatio.report.analysis.arms import UNMATCHED, Arm, arms_of, choose_metric, higher_is_better, rate_is_free, tuned
from ablatio.report.analysis.effects_verdict import effects_verdict, fitted_effects
from ablatio.report.analysis.registered import ask_anew, primary
from ablatio.report.analysis.rules import rule_sentences
from ablatio.report.analysis.scaling_verdict import ArmTrend, arm_trends
from ablatio.report.analysis.scaling_verdict import sentences as trend_sentences
from ablatio.report.analysis.sequential import Standing, notes_of, standings_of, with_looks, words_of
from ablatio.report.analysis.study_effects import StudyEffects
from ablatio.report.analysis.verdict import ArmFacts, Language, Verdict, verdict
from ablatio.report.read.curves import COLLAPSED
from ablatio.report.read.run import RATE
from ablatio.report.read.table import Table
from ablatio.report.statistics import (
    Better,
    Comparison,
    Correction,
    Method,
    Noise,
    Pair,
    Shrunk,
    compare,
    noise,
    shrink,
    smallest_difference,
)
from ablatio.sweep.study import Study, design_facts

UNITS = {"loss": "nats", "bpb": "bits/byte"}  # units of scores, by the last part of their name
CORRECTIONS = {"holm": "Holm", "dunnett": "Dunnett", "bh": "Benjamini-Hochberg", "none": ""}
LANGUAGES: tuple[Language, ...] = ("en", "zh")

SHRUNK = 4  # arms from which their means are shrunk
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
    """Everything a report says.  rows: the best first; arms without a value last.

    rules   sentences on margin, target, scores that disagree, and deviations from the registration
    shrunk  posterior of each arm by name, of studies with SHRUNK arms or more
    """

    table: Table
    metric: str
    better: str
    rows: Sequence[Row]
    comparison: Comparison | None
    factors: StudyEffects | None
    verdicts: Mapping[Language, Verdict]
    rules: Mapping[Language, Sequence[str]] = field(default_factory=dict)
    shrunk: Mapping[str, Shrunk] = field(default_factory=dict)

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

    @property
    def trends(self) -> Sequence[ArmTrend]:
        """Change of each arm's gain over the sizes and lengths of the study; empty without them."""
        places = {id(run): place for place, run in enumerate(self.table.runs)}
        arms = sorted((r.arm for r in self.rows), key=lambda a: min(places.get(id(r), 0) for r in a.runs))
        return arm_trends(arms, self.better, alpha_of(self.table.study))

    def said_of_scales(self, language: Language = "en") -> Sequence[str]:
        """Verdict across scales, one sentence per arm."""
        return trend_sentences(self.trends, UNITS.get(self.metric.rsplit("/", 1)[-1], ""), language)

    def said(self, language: Language = "en") -> Sequence[str]:
        """Headline, the other sentences, and notes."""
        words, rules = self.verdicts.get(language), self.rules.get(language, ())
        if words is None:
            return rules
        others = [s.text for s in words.sentences if s.text != words.headline]
        return [words.headline, *rules, *others, *words.notes]

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
    alpha: float | None = None,
    margin: str | None = None,
    target: str | None = None,
) -> Findings:
    """Compare the arms of a table.

    correction             for many comparisons: holm, dunnett, bh (Benjamini-Hochberg, for screening), none
    method                 of intervals and p: t, moderated, bootstrap (BCa), permutation
    alpha, margin, target  instead of the study's
    """
    metric = choose_metric(table, primary(table, metric))
    ask_anew(table, metric, alpha=alpha, margin=margin, target=target)
    better = "high" if higher_is_better(table, metric) else "low"
    arms = arms_of(table, metric, baseline)
    base = next((a for a in arms if a.baseline), None)
    scored = {a.name: a.values for a in arms if a.values}
    against = base.name if base and base.name in scored else None
    factors = fitted_effects(table, metric)
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
    level = alpha_of(table.study)
    words = _verdicts(comparison, unit, table, arms, standings) or effects_verdict(factors, unit, level)
    rules = rule_sentences(table, metric, comparison, arms, better=better, alpha=level, method=method)
    shrunk = shrink(scored, better=better) if len(scored) >= SHRUNK else {}
    return Findings(table, metric, better, rows, comparison, factors, words, rules, shrunk)


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


def _verdicts(
    comparison: Comparison | None, unit: str, table: Table, arms: Sequence[Arm], standings: Mapping[str, Standing]
) -> Mapping[Language, Verdict]:
    if comparison is None:
        return {}
    free = rate_is_free(table)
    facts = {a.name: ArmFacts(a.size("parameters"), None if free else RATE in tuned(table, a)) for a in arms}
    found = {}
    for n in LANGUAGES:
        said = verdict(comparison, facts=facts, unit=unit, language=n, looks=words_of(standings, unit, n))
        found[n] = replace(said, notes=(*said.notes, *notes_of(table.study, standings, n)))
    return found
