"""The report of a sequential study: p and intervals that count the looks, and the state of each comparison.

    standings = standings_of(study, comparison, values, labels)   # {} for a study with a fixed number of seeds
    comparison = with_looks(comparison, standings, study)

It also names deviations from the plan: seeds that were added to a fixed study when results were there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ablatio.errors import UserError
from ablatio.report.analysis.verdict_types import Language
from ablatio.report.statistics import Comparison, Correction, Difference, Pair, benjamini_hochberg, holm
from ablatio.report.statistics.comparison import SEQUENTIAL, excludes_zero
from ablatio.sweep.group_sequential import Boundaries
from ablatio.sweep.stopping_rule import State, StoppingRule, moments, t_test_p
from ablatio.sweep.study import SEEDS_ADDED, Study

Values = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, slots=True)
class Standing:
    """State of one comparison with the baseline in a sequential study.

    state       resolved, equal (within the margin), hopeless, untested (a run diverged) or open
    look        the last look that it took part in, from 1; 0 before the first
    looks       planned looks
    difference  arm - baseline at that look; its interval and p count the looks.  p is not corrected for the other
                comparisons
    end         why no more seeds came, if the state is open: "last look", "budget", or "" if the study goes on
    """

    state: State
    look: int
    looks: int
    difference: Difference
    end: str
    margin: float | None
    corrected: tuple[float, float]  # interval that allows for the other comparisons, too
    left_out: int  # seeds up to that look for which only one of the two has a value


def is_sequential(study: Study) -> bool:
    """True if the study adds seeds in planned looks (until=resolved)."""
    return bool(study.sequential)


def standings_of(
    study: Study, comparison: Comparison, values: Values, labels: Mapping[str, str]
) -> dict[str, Standing]:
    """Return the standing of each arm by its name; {} if the study, or this comparison of it, is not sequential.

    values   arm -> seed -> score, as `compare` takes them; seeds after the last look are not used
    labels   name of an arm in `values` -> its label in the study
    """
    record = study.sequential
    if not record or comparison.baseline is None or labels[comparison.baseline] != record["baseline"]:
        return {}
    rule = StoppingRule(Boundaries.read(record["boundaries"]), record["comparisons"], record["alpha"], record["margin"])
    base = values[comparison.baseline]
    return {arm: _standing(record, rule, labels[arm], of, base) for arm, of in values.items() if of is not base}


def _standing(
    record: Mapping[str, Any], rule: StoppingRule, label: str, mine: Mapping[int, float], base: Mapping[int, float]
) -> Standing:
    state: State = "open"
    difference = Difference(math.nan, math.nan, math.nan, math.nan, 0, math.nan, "before the first look")
    p, last, left_out, wide = 1.0, 0, 0, (math.nan, math.nan)
    for look, told in enumerate(record["looks"]):
        if label not in told["comparisons"] or state != "open":
            state = told["comparisons"].get(label, {}).get("state", state)
            continue
        last, state = look + 1, told["comparisons"][label]["state"]
        # Seeds that came after the look were not part of the decision.
        seeds = record["seeds"][: told["seeds"]]
        there = {s: (math.isfinite(mine.get(s, math.nan)), math.isfinite(base.get(s, math.nan))) for s in seeds}
        pairs = [(mine[s], base[s]) for s in seeds if all(there[s])]
        left_out = sum(any(two) and not all(two) for two in there.values())
        mean, sd, n = moments([a for a, _ in pairs], [b for _, b in pairs])
        # Equal in every seed, but not by 0: there is no spread to test the difference by.
        tested = n > 1 and state != "untested" and (sd > 0 or mean == 0)
        # The level at which this look would just resolve; the smallest one over the looks so far is the p of the study.
        p = float(min(p, rule.boundaries.level_of(look, t_test_p(mean, sd, n)))) if tested else p
        low, high = rule.interval(look, mean, sd, n) if tested else (math.nan, math.nan)
        wide = rule.interval(look, mean, sd, n, 1 - rule.alpha / rule.comparisons) if tested else wide
        difference = Difference(mean, low, high, p if tested else math.nan, n, sd, SEQUENTIAL)
    return Standing(state, last, len(rule.sizes), difference, record["end"], record["margin"], wide, left_out)


def with_looks(comparison: Comparison, standings: Mapping[str, Standing], study: Study) -> Comparison:
    """Return the comparison with the p and the intervals of the looks; unchanged without standings.

    Raises:
        UserError: the correction has no sequential form.
    """
    if not standings:
        return comparison
    raw = [standings[pair.a].difference.p for pair in comparison.pairs]
    missing = [math.nan] * (int(study.sequential["comparisons"]) - len(raw))  # arms without any result count
    corrected = _corrected([*raw, *missing], comparison.correction)
    pairs = list[Pair]()
    for pair, p in zip(comparison.pairs, corrected, strict=False):
        standing = standings[pair.a]
        difference = standing.difference
        lower = pair.a if (difference.mean < 0) == (comparison.better == "low") else pair.b
        better = lower if p <= comparison.alpha else None
        new = replace(
            pair,
            difference=difference,
            p=p,
            better=better,
            planned_seeds=None,
            detectable=math.nan,
            left_out=standing.left_out,
            corrected=_corrected_interval(standing) if better is None else None,
        )
        pairs.append(new)
    return replace(comparison, pairs=tuple(pairs))


def _corrected_interval(standing: Standing) -> tuple[float, float] | None:
    """The interval that holds for all comparisons together, if only that one contains 0."""
    own = excludes_zero(standing.difference.low, standing.difference.high)
    return standing.corrected if own and not excludes_zero(*standing.corrected) else None


def _corrected(raw: Sequence[float], correction: Correction | Literal["hsu"]) -> list[float]:
    if correction == "dunnett":
        raise UserError("Dunnett's test does not count the looks of a sequential study\n    try: --correction holm")
    if correction == "none":
        return list(raw)
    return [float(p) for p in (holm(raw) if correction == "holm" else benjamini_hochberg(raw))]


def words_of(standings: Mapping[str, Standing], unit: str, language: Language) -> dict[str, str]:
    """Return arm -> state of its comparison in words, for the sentence on it."""
    words = WORDS[language]
    return {
        arm: words[_key(one)].format(look=one.look, looks=one.looks, margin=f"{one.margin or 0:g}", unit=unit)
        for arm, one in standings.items()
    }


def _key(standing: Standing) -> str:
    if standing.state == "open":
        return standing.end if standing.end in ("last look", "budget") else "open" if standing.look else "before"
    if standing.state == "equal" and standing.difference.sd == 0:
        return "resolved"  # identical numbers: the sentence says it
    return standing.state


def notes_of(study: Study, standings: Mapping[str, Standing], language: Language) -> list[str]:
    """Return remarks on the looks and on deviations from the plan."""
    words, found = WORDS[language], list[str]()
    if standings:
        record = study.sequential
        sizes = words["comma"].join(map(str, record["boundaries"]["sizes"]))
        percent = f"{100 * record['alpha']:g}"
        found.append(words["looks"].format(made=len(record["looks"]), sizes=sizes, alpha=percent))
    elif study.sequential:
        found.append(words["other baseline"].format(baseline=study.sequential["baseline"]))
    for deviation in study.deviations:
        if deviation["kind"] == SEEDS_ADDED:
            seeds, added = (words["comma"].join(map(str, deviation[key])) for key in ("seeds", "added"))
            found.append(words["added"].format(seeds=seeds, added=added))
    return found


WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "comma": ", ",
        "resolved": "after look {look} of {looks}",
        "equal": "equal within the margin of {margin} {unit} after look {look} of {looks}",
        "hopeless": "not resolved, given up after look {look} of {looks}: the planned seeds would hardly resolve it",
        "open": "not resolved yet, after look {look} of {looks}",
        "before": "no test before the first of {looks} looks",
        "last look": "not resolved at the last of {looks} looks",
        "budget": "not resolved when the budget was used up, after look {look} of {looks}",
        "untested": "no test of the mean, because runs diverged: the others are no fair sample of the arm",
        "looks": "A sequential study with alpha spending, {made} looks made, planned at {sizes} seeds: p and intervals "
        "allow for the looks, and at most {alpha} in 100 studies without any effect name a winner.",
        "other baseline": "The looks of this sequential study compare with {baseline}: for another baseline p is not "
        "corrected for them.",
        "added": "Seeds {added} were added when results of seeds {seeds} were there; p is not corrected for that look. "
        "A study with until=resolved plans its looks.",
    },
    "zh": {
        "comma": "、",
        "resolved": "第 {look} 次检视（共计划 {looks} 次）后判定",
        "equal": "第 {look} 次检视（共计划 {looks} 次）后判定：在 {margin} {unit} 的界限内相等",
        "hopeless": "未能分辨，第 {look} 次检视（共计划 {looks} 次）后放弃：计划内的种子很难分辨",
        "open": "第 {look} 次检视（共计划 {looks} 次）后尚未判定",
        "before": "尚未进行第一次检视（共计划 {looks} 次）",
        "last look": "最后一次检视（共 {looks} 次）时仍未判定",
        "budget": "预算用尽时（第 {look} 次检视后，共计划 {looks} 次）仍未判定",
        "untested": "有运行发散，其余运行不能代表该方案，因此不对均值作检验",
        "looks": "序贯研究：已检视 {made} 次，计划在 {sizes} 个种子时检视，采用 alpha 消耗；p 值与区间已计入各次检视，"
        "100 次毫无效应的研究中至多有 {alpha} 次会误判出优胜者。",
        "other baseline": "该序贯研究的各次检视以 {baseline} 为基线；换用其他基线时，p 值未按检视次数校正。",
        "added": "种子 {added} 是在种子 {seeds} 已有结果之后追加的，p 值未对这次检视作校正。"
        "until=resolved 会事先计划检视。",
    },
}
