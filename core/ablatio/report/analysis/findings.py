"""Findings of a table of runs: compared arms in numbers and words.  All outputs are written from this."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from ablatio.errors import UserError
from ablatio.report.analysis.arms import (
    BASELINE,
    Arm,
    arms_of,
    higher_is_better,
    rate_is_free,
    tuned,
    tuned_to_the_edge,
)
from ablatio.report.analysis.budgets import budgets_of, tolerance
from ablatio.report.analysis.comparability import Score, comparable_score, comparison_classes
from ablatio.report.analysis.effects_verdict import effects_verdict, fitted_effects
from ablatio.report.analysis.registered import ask_anew, primary
from ablatio.report.analysis.replicates import replicate_sentences
from ablatio.report.analysis.rules import rule_sentences
from ablatio.report.analysis.scaling_verdict import ArmTrend, arm_trends
from ablatio.report.analysis.scaling_verdict import sentences as trend_sentences
from ablatio.report.analysis.sequential import Standing, notes_of, standings_of, with_looks, words_of
from ablatio.report.analysis.study_effects import StudyEffects
from ablatio.report.analysis.verdict import LANGUAGES, TEXTS, ArmFacts, Language, Verdict, refusal, verdict
from ablatio.report.read.curves import COLLAPSED
from ablatio.report.read.notes import note
from ablatio.report.read.run import RATE, terms_of
from ablatio.report.read.table import Table
from ablatio.report.statistics import (
    ALL_PAIRS,
    Better,
    Comparison,
    Correction,
    Method,
    Noise,
    Pair,
    Shrunk,
    compare,
    compare_with_best,
    noise,
    shrink,
    smallest_difference,
)
from ablatio.sweep.study import Study, design_facts, label_of

UNITS = {"loss": "nats", "bpb": "bits/byte"}  # units of scores, by the last part of their name
CORRECTIONS = {"holm": "Holm", "dunnett": "Dunnett", "bh": "Benjamini-Hochberg", "none": "", "hsu": "closed testing"}
SHRUNK = 4  # arms from which their means are shrunk
Notes = list[tuple[str, Mapping[str, object]]]  # keys of the verdict's texts, with their values


def alpha_of(study: Study) -> float:
    """Significance level of the study: the share of studies without any effect that may name a winner."""
    return float(study.settings.get("alpha", 0.05))


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in the results table; unknown values are None.

    pair      comparison with the baseline
    residual  budget -> relative excess over the baseline's
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
        """Budgets of which it had more or less than the baseline: a difference may be due to them."""
        # Symmetric: half of a budget is as far off as twice of it.
        return [k for k, share in self.residual.items() if max(1 + share, 1 / (1 + share)) > 1 + tolerance(k)]


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
        # Without pairs the arms are taken as independent, which overstates the spread of what shares seeds.
        sd, alpha = self.pair_sd or floor.sd * math.sqrt(2), alpha_of(self.table.study)
        return {n: smallest_difference(n, sd, alpha=alpha, df=floor.n - 1) for n in range(2, most + 1)}

    @property
    def trends(self) -> Sequence[ArmTrend]:
        """Change of each arm's gain over the sizes and lengths of the study; empty without them."""
        places = {id(run): place for place, run in enumerate(self.table.runs)}
        # In the order of the study: rows are sorted by score, which differs from size to size.
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
        sentences = words.sentences
        # A search with one seed has a pair for any two of its trials, and no test of one: its answer is the best trial.
        if len(sentences) > 1 and design_facts(self.table.study)["intervals"]:
            sentences = sentences if any(s.kind != "not testable" for s in sentences) else ()
        told = (*words.outcomes, *(s.text for s in sentences))
        first = f"{words.headline} {words.answer}"
        answer = [words.answer] if words.answer else []
        return [
            words.headline, *rules, *words.effects, *answer, *(text for text in told if text not in first),
            *words.notes,
        ]  # fmt: skip

    @property
    def leading(self) -> int:
        """Number of the first sentences of `said` that are on effects of settings; 0 if the arms come first."""
        words = self.verdicts.get("en")
        return 1 + len(self.rules.get("en", ())) + len(words.effects) if words and words.effects else 0


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
    method                 of intervals and p: t, moderated, skewed, bootstrap (BCa), permutation
    alpha, margin, target  instead of the study's
    """
    score = comparable_score(table, primary(table, metric))
    metric = score.metric
    # First, since it changes the settings of the study from which all that follows reads its level.
    ask_anew(table, metric, alpha=alpha, margin=margin, target=target)
    better: Better = "high" if higher_is_better(table, metric) else "low"
    arms = arms_of(table, metric, baseline)
    base = next((a for a in arms if a.baseline), None)
    factors = None if score.refused else fitted_effects(table, metric)
    asked: Notes = []
    comparison, standings = None, dict[str, Standing]()
    refused = "refused tokenizers" if score.refused else ""
    if not (factors and design_facts(table.study)["screens"]) and any(a.values for a in arms) and not refused:
        if correction == "dunnett" and base is None:
            raise UserError(
                "--correction dunnett compares with a baseline, and there is none\n    try: --baseline "
                f"{shlex.quote(next(iter(arms)).label)}"
            )
        comparison = _compared(table, arms, asked, better, correction, method)
        # Looks and margins are planned for fixed pairs; which arm is the best is only known from the data.
        if comparison.best is None:
            values, cells = {a.name: a.values for a in arms}, {a.name: a.cell for a in arms}
            standings = standings_of(table.study, comparison, values, cells)
            comparison = with_looks(comparison, standings, table.study)
        refused = "" if comparison.pairs or len(arms) < 2 else _reason(arms)
    table.notes += _cautions(table, arms)
    table.notes += _collapses(arms)
    table.notes += [note("baseline", settings=a.label) for a in arms if a.name == BASELINE]
    rows = [_row(a, base, comparison) for a in arms]
    sign = 1 if better == "low" else -1
    rows.sort(key=lambda r: math.inf if r.mean is None else sign * r.mean)
    unit = UNITS.get(metric.rsplit("/", 1)[-1], metric)
    if refused:
        names = ", ".join(score.tokenizers)
        words: Mapping[Language, Verdict] = {n: refusal(refused, n, metric=metric, names=names) for n in LANGUAGES}
        return Findings(table, metric, better, rows, None, factors, words)
    level = alpha_of(table.study)
    words = _verdicts(comparison, unit, table, arms, [*_on_score(score), *asked], standings)
    words = _with_effects(words, effects_verdict(factors, unit, level), factors, _on_score(score))
    rules = rule_sentences(table, metric, comparison, arms, better=better, alpha=level, method=method)
    replicates = replicate_sentences(arms, metric, unit)
    rules = {language: [*rules.get(language, ()), *replicates[language]] for language in LANGUAGES}
    scored = {a.name: a.values for a in arms if a.values}
    shrunk = shrink(scored, better=better) if len(scored) >= SHRUNK else {}
    return Findings(table, metric, better, rows, comparison, factors, words, rules, shrunk)


def _compared(
    table: Table, arms: Sequence[Arm], asked: Notes, better: Better, correction: Correction, method: Method
) -> Comparison:
    """Compare the arms: with the baseline, else all pairs, else, of many arms, with the best.  `asked` gets notes."""
    alpha, agree = alpha_of(table.study), comparison_classes(arms)
    base = next((a for a in arms if a.baseline), None)
    if base is not None and not base.values and any(a.values for a in arms):
        # A baseline without any result must not leave the other arms uncompared.
        asked.append(("no baseline", {"base": base.name}))
        base = None
    elif base is None and table.study.baseline is not None:
        asked.append(("no baseline", {"base": label_of(table.study.baseline)}))
    values = {a.name: a.values for a in arms}
    if base is not None:
        if others := [a.name for a in arms if agree[a.name] != agree[base.name]]:
            asked.append(("not compared", {"base": base.name, "arms": ", ".join(others)}))
    elif len(set(agree.values())) > 1:
        asked.append(("not compared pairs", {}))
    elif len(arms) > ALL_PAIRS:
        if (correction, method) != ("holm", "t"):
            table.notes.append(note("many arms", n=ALL_PAIRS))
        return compare_with_best(values, better=better, alpha=alpha)
    against = base.name if base is not None else None
    correction = "holm" if against is None and correction == "dunnett" else correction
    return compare(values, against, better=better, correction=correction, method=method, alpha=alpha, groups=agree)


def _reason(arms: Sequence[Arm]) -> str:
    """Why no two arms can be compared; empty if they could, and only lack seeds."""
    agree = comparison_classes(arms).values()
    if len({text for text, _ in agree}) > 1:
        return "refused text"
    return "refused conditions" if len({conditions for _, conditions in agree}) > 1 else ""


def _with_effects(
    arms: Mapping[Language, Verdict], effects: Mapping[Language, Verdict], found: StudyEffects | None, notes: Notes
) -> Mapping[Language, Verdict]:
    """Verdict of a study whose settings vary together: effects first, then the arms; of pairs only the resolved ones.

    Without a test of effects the arms come first.  Comparisons with a baseline, which somebody asked for, all stay.
    """
    if not effects or found is None:
        return arms
    if not arms:
        own = {n: tuple(TEXTS[n][key].format(**v) for key, v in notes) for n in effects}
        return {n: replace(of, notes=(*of.notes, *own[n])) for n, of in effects.items()}
    if found.screen.scale == "none":
        return arms
    return {n: _after_effects(of, arms[n]) for n, of in effects.items()}


def _after_effects(effects: Verdict, arms: Verdict) -> Verdict:
    answer = arms.headline.removeprefix(arms.lost).strip()
    kept = tuple(s for s in arms.sentences if s.asked or s.kind == "resolved")
    return Verdict(
        " ".join(filter(None, [arms.lost, effects.headline])), kept, (*effects.notes, *arms.notes), arms.outcomes,
        effects.effects, answer, arms.lost,
    )  # fmt: skip


def _on_score(score: Score) -> Notes:
    return [("per byte", {"names": ", ".join(score.tokenizers)})] if score.tokenizers else []


def _cautions(table: Table, arms: Sequence[Arm]) -> list[str]:
    """Notes on what differs between the folders of an arm and between versions of the code."""
    said = list[str]()
    groups = dict.fromkeys(run.group for run in table.counted)
    in_each = [[{terms_of(r) for r in arm.runs if r.done and r.group == group} for group in groups] for arm in arms]
    if any(len({frozenset(of) for of in found if of}) > 1 for found in in_each):
        said.append(note("mixed"))
    if (codes := len({run.code for run in table.counted if run.code})) > 1:
        said.append(note("versions", n=codes))
    return said


def _collapses(arms: Sequence[Arm]) -> list[str]:
    """Notes on policies that collapsed to one answer: their scores do not measure the method."""
    said = list[str]()
    for arm in arms:
        curves = [r.curves[COLLAPSED] for r in arm.runs if COLLAPSED in r.curves]
        first = [next(s for s, v in zip(*curve, strict=True) if v > 0) for curve in curves if any(curve[1])]
        if first:
            several = {"n": len(first), "runs": len(curves)} if len(curves) > 1 else {}
            said.append(note("collapsed" if several else "collapsed one", arm=arm.label, step=min(first), **several))
    return said


def _row(arm: Arm, base: Arm | None, comparison: Comparison | None) -> Row:
    found = [v for v in arm.values.values() if math.isfinite(v)]
    mean = sum(found) / len(found) if found else None
    sd = math.sqrt(sum((v - mean) ** 2 for v in found) / (len(found) - 1)) if mean is not None and found[1:] else None
    pair = rank = None
    if comparison:
        # Without a baseline an arm stands in several pairs, and none of them is its own.
        pair = next((p for p in comparison.pairs if p.a == arm.name), None) if comparison.baseline else None
        rank = next((a.rank for a in comparison.arms if a.label == arm.name and not math.isnan(a.rank)), None)
    residual: dict[str, float] = {}
    if base is not None and not arm.baseline:
        mine, others = ({**budgets_of(a), "flops_per_token": a.size("flops_per_token")} for a in (arm, base))
        residual = {k: v / other - 1 for k, v in mine.items() if v and (other := others.get(k))}
    return Row(arm, len(found), mean, sd, rank, pair, residual)


def _verdicts(
    comparison: Comparison | None,
    unit: str,
    table: Table,
    arms: Sequence[Arm],
    notes: Notes,
    standings: Mapping[str, Standing],
) -> Mapping[Language, Verdict]:
    if comparison is None:
        return {}
    free = rate_is_free(table)
    # A model that is evaluated as it is has no learning rate that could be tuned.
    facts = {
        a.name: ArmFacts(
            a.size("parameters"),
            None if free or a.size("steps") == 0 else RATE in tuned(table, a),
            budgets_of(a),
            tuned_to_the_edge(table, a),
        )
        for a in arms
    }
    found = {}
    for n in LANGUAGES:
        looks = words_of(standings, unit, n)
        said = verdict(comparison, facts=facts, unit=unit, language=n, notes=notes, looks=looks)
        found[n] = replace(said, notes=(*said.notes, *notes_of(table.study, standings, n)))
    return found
