"""Sentences on a study's registered rules: margin, target, scores that disagree, deviations from the registration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ablatio.report.analysis.arms import HIGHER, Arm, higher_is_better
from ablatio.report.analysis.registered import amount, deviations
from ablatio.report.analysis.rules_texts import TEXTS
from ablatio.report.analysis.to_target import ToTarget, to_target
from ablatio.report.analysis.verdict import Language
from ablatio.report.numbers import p_said, short
from ablatio.report.read.notes import Note
from ablatio.report.read.table import Table
from ablatio.report.statistics import Better, Comparison, Difference, MarginTest, Method, Pair, against_margin, compare
from ablatio.sweep.registration import UNITS, unit_of

SHOWN = 5  # arms listed in one sentence


def rule_sentences(
    table: Table, metric: str, comparison: Comparison | None, arms: Sequence[Arm], *, better: str, alpha: float,
    method: Method = "t",
) -> Mapping[Language, Sequence[str]]:  # fmt: skip
    """Judge a study by its margin and target, and name what deviates; empty lists if there is nothing to say."""
    problems, margin, target = list[str](), None, None
    try:
        margin = amount(table, "margin", metric)
    except ValueError as error:
        problems.append(error.args[0])
    try:
        target = amount(table, "target", metric)
    except ValueError as error:
        problems.append(error.args[0])
    reached = to_target(arms, metric, target.value, better=better, alpha=alpha) if target else None
    others = _other_scores(table, metric, comparison, arms, method)
    said: dict[Language, Sequence[str]] = {}
    for language, words in TEXTS.items():
        speaker = _Speaker(words, unit_of(metric), alpha)
        lines = list(speaker.margin(comparison, margin.value, better)) if margin else []
        lines += speaker.target(reached) if reached else []
        lines += speaker.disagreements(metric, comparison, others)
        told = [why.zh if language == "zh" and isinstance(why, Note) else why for why in problems]
        lines += [speaker.say("no rule", why=why) for why in told]
        lines += [speaker.say("moderated", m=len(comparison.pairs))] if comparison and _is_moderated(comparison) else []
        lines += speaker.deviations(list(deviations(table, metric)))
        said[language] = lines
    return said


def _is_moderated(comparison: Comparison) -> bool:
    return any(pair.difference.method == "moderated t" for pair in comparison.pairs)


def _other_scores(
    table: Table, metric: str, comparison: Comparison | None, arms: Sequence[Arm], method: Method
) -> dict[str, Comparison]:
    """The same comparison by each other score that all finished runs have and whose direction is known."""
    # Scores disagree where both resolve a pair; with several folders the blocks are no seeds, see `Arm.values`.
    if comparison is None or not any(pair.better for pair in comparison.pairs) or table.several_data:
        return {}
    if comparison.correction == "hsu":  # its pairs are those with the best arm by this score
        return {}
    common = set.intersection(*(set(run.scores) for run in table.counted))
    known = [m for m in sorted(common - {metric}) if m.startswith("val/") and m.rsplit("/", 1)[-1].endswith(_KNOWN)]
    found = {}
    for other in known:
        values = {arm.name: arm.scores(other) for arm in arms if arm.values}
        better: Better = "high" if higher_is_better(table, other) else "low"
        found[other] = compare(
            values, comparison.baseline, better=better,
            correction=comparison.correction, method=method, alpha=comparison.alpha,
        )  # fmt: skip
    return found


def _has_diverged(comparison: Comparison, pair: Pair) -> bool:
    return any(comparison.arm(label).diverged for label in (pair.a, pair.b))


def _without_survivors(comparison: Comparison, pair: Pair) -> Difference:
    """The difference of a pair; untestable if runs diverged, because the others are a selection of the best."""
    if not _has_diverged(comparison, pair):
        return pair.difference
    return replace(pair.difference, mean=math.nan, sd=math.nan, low=math.nan, high=math.nan, p=math.nan)


_KNOWN = (*HIGHER, *UNITS)  # endings of scores whose direction is known


class _Speaker:
    def __init__(self, words: Mapping[str, str], unit: str, alpha: float) -> None:
        self.words, self.unit, self.alpha = words, unit, alpha

    def say(self, key: str, **values: object) -> str:
        return self.words[key].format(**values)

    def _figures(self, d: Difference, p: float, key: str, turned: bool = False) -> str:
        """`+0.021 nats [+0.012, +0.030], one-sided Holm p = 0.003, n = 5`; turned: b - a instead of a - b."""
        return self.say("figures", mean=self._mean(d, turned), test=self.say(key, p=f"p {p_said(p)}"), n=d.n)

    def _mean(self, d: Difference, turned: bool = False) -> str:
        mean, low, high = (-d.mean, -d.high, -d.low) if turned else (d.mean, d.low, d.high)
        places = 3 if math.isnan(high - low) else min(6, max(3, -math.floor(math.log10(max(high - low, 1e-9) / 2))))
        reach = "" if math.isnan(low) else f" [{low:+.{places}f}, {high:+.{places}f}]"
        return f"{mean:+.{places}f} {self.unit}{reach}"

    def margin(self, comparison: Comparison | None, margin: float, better: str) -> Iterator[str]:
        """One sentence per pair."""
        text = f"{margin:g} {self.unit}"
        if comparison is None or not comparison.pairs or comparison.best is not None:
            yield self.say("margin without pairs", margin=text)
            return
        directed = comparison.baseline is not None
        differences = [_without_survivors(comparison, pair) for pair in comparison.pairs]
        tests = against_margin(differences, margin, better=better, alpha=self.alpha, directed=directed)
        side = "p one-sided" if directed else "p either side"
        for pair, test in zip(comparison.pairs, tests, strict=True):
            yield self._on_margin(pair, test, text, side, _has_diverged(comparison, pair))

    def _on_margin(self, pair: Pair, test: MarginTest, margin: str, side: str, diverged: bool) -> str:
        d, outcome = pair.difference, test.outcome
        if outcome == "no test" and diverged:
            return self.say("margin: diverged", a=pair.a, b=pair.b, margin=margin)
        if outcome == "no test":
            return self.say("margin: no test", a=pair.a, b=pair.b, margin=margin, n=test.n)
        if outcome == "open":
            return self.say("margin: open", a=pair.a, b=pair.b, margin=margin, mean=self._mean(d), n=d.n)
        winner, loser = (pair.b, pair.a) if outcome == "inferior" else (pair.a, pair.b)
        key = {"equivalent": "p TOST", "not inferior": "p one-sided"}.get(outcome, side)
        figures = self._figures(d, test.p[outcome], key, turned=outcome == "inferior")
        name = "superior" if outcome == "inferior" else outcome
        return self.say(f"margin: {name}", a=winner, b=loser, margin=margin, figures=figures)

    def target(self, found: ToTarget) -> Iterator[str]:
        """Arms that reach the target, each with its stopping step; the nearest one if none does."""
        text = f"{found.target:g} {self.unit}"
        for name in found.reached:
            test = found.tests[name]
            values = {"mean": f"{test.mean:.4f}", "bound": f"{test.bound:.4f}", "unit": self.unit}
            line = self.say("reached", arm=name, target=text, p=f"p {p_said(test.p)}", n=test.n, **values)
            yield line + (self._stop(found, name) if name in found.stops else "")
        open_arms = {k: t for k, t in found.tests.items() if not t.reached and not math.isnan(t.mean)}
        if not found.reached and open_arms:
            nearest = min(open_arms, key=found.distance)
            yield self.say("none reaches", target=text, alpha=f"{self.alpha:g}", nearest=self._of(found, nearest))
        elif open_arms:
            listed = self.words["comma"].join(self._of(found, k) for k in [*open_arms][:SHOWN])
            more = self.say("and more", k=len(open_arms) - SHOWN) if len(open_arms) > SHOWN else ""
            yield self.say("others do not", arms=listed + more)
        yield from (self._at_stops(found, i) for i in range(len(found.pairs)))

    def _of(self, found: ToTarget, name: str) -> str:
        test = found.tests[name]
        mean = f"{test.mean:.4f} {self.unit}"
        if test.diverged:
            return self.say("target: diverged", arm=name, mean=mean, k=test.diverged, runs=test.n + test.diverged)
        if math.isnan(test.p):
            return self.say("target: no test", arm=name, mean=mean, n=test.n)
        return self.say("target: open", arm=name, mean=mean, p=f"p {p_said(test.p)}", n=test.n)

    def _stop(self, found: ToTarget, name: str) -> str:
        stop = found.stops[name]
        parts = [
            self.say(key, amount=short(stop.cost[key], 3)) for key in ("tokens", "bytes", "seconds") if key in stop.cost
        ]
        return self.say("from step", step=stop.step, cost=self.words["comma"].join(["", *parts]))

    def _at_stops(self, found: ToTarget, i: int) -> str:
        pair = found.pairs[i]
        steps = {"first": found.stops[pair.a].step, "second": found.stops[pair.b].step}
        key = "untested" if math.isnan(pair.p) else "p Holm"
        figures = self._figures(pair.difference, pair.p, key)
        return self.say("at stops", a=pair.a, b=pair.b, figures=figures, **steps)

    def disagreements(
        self, metric: str, comparison: Comparison | None, others: Mapping[str, Comparison]
    ) -> Iterator[str]:
        """Pairs for which another score resolves the opposite."""
        mine = {(p.a, p.b): p for p in (comparison.pairs if comparison else ()) if p.better}
        for other, found in others.items():
            for pair in found.pairs:
                here = mine.get((pair.a, pair.b))
                if here and pair.better and pair.better != here.better:
                    loser = here.b if here.better == here.a else here.a
                    numbers = _Speaker(self.words, unit_of(other), self.alpha)
                    figures = numbers._figures(pair.difference, pair.p, "p corrected", turned=pair.better == pair.b)
                    yield self.say(
                        "disagree", metric=metric, other=other, winner=here.better, loser=loser, figures=figures
                    )

    def deviations(self, found: Sequence[tuple[str, str, str]]) -> list[str]:
        """One sentence on all deviations from the registration."""
        if not found:
            return []
        told = [self.say("instead", what=self.words[what], now=now, before=before) for what, now, before in found]
        return [self.say("deviates", what=self.words["comma"].join(told))]
