"""The verdict of a comparison in words, in English or Chinese.

    verdict(compare(values, "gelu"), facts={"gelu": ArmFacts(parameters=10_000), ...}, unit="nats")

gives a headline, one sentence per arm that diverged, and one sentence per pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ablatio.report.analysis.pair_sentences import Speaker, rounded_up
from ablatio.report.analysis.verdict_texts import TEXTS
from ablatio.report.analysis.verdict_types import LANGUAGES, ArmFacts, Kind, Language, Sentence, Verdict
from ablatio.report.numbers import p_said
from ablatio.report.statistics import Comparison, Divergence
from ablatio.report.statistics.comparison import SEQUENTIAL

__all__ = ["LANGUAGES", "TEXTS", "ArmFacts", "Language", "Sentence", "Verdict", "refusal", "verdict"]

ORDER: Mapping[Kind, int] = {"resolved": 0, "not resolved": 1, "equal": 2, "not testable": 3}
LISTED = 6  # arms that a headline names


def verdict(
    comparison: Comparison,
    *,
    facts: Mapping[str, ArmFacts] | None = None,
    unit: str = "nats",
    language: Language = "en",
    notes: Sequence[tuple[str, Mapping[str, object]]] = (),
    looks: Mapping[str, str] = MappingProxyType({}),
) -> Verdict:
    """Put a comparison into words.

    facts  by label; arms without facts are taken as they are
    notes  further notes: keys of TEXTS with their values
    looks  of a sequential study: arm -> what to say of the state of its comparison
    """
    speaker = _Headlines(comparison, facts or {}, unit, TEXTS[language], looks)
    said = [speaker.sentence(pair) for pair in comparison.pairs]
    said.sort(key=lambda s: (ORDER[s.kind], _rank(s)))
    outcomes = speaker.outcomes()
    first = speaker.diverged_headline(outcomes)
    headline = speaker.words["stop"].join(filter(None, [first, speaker.headline(said)]))
    more = [speaker.say(key, **values) for key, values in notes]
    return Verdict(headline, tuple(said), (*more, *speaker.notes()), tuple(outcomes), lost=first)


def refusal(reason: str, language: Language, **values: object) -> Verdict:
    """Return the verdict of a study whose arms cannot be compared."""
    return Verdict(TEXTS[language][reason].format(**values), (), ())


def _rank(sentence: Sentence) -> float:
    """Order within a kind: the largest difference first; pairs that have ranks alone come last."""
    mean = sentence.pair.difference.mean
    return 0.0 if sentence.kind == "not testable" or sentence.pair.ranked else -abs(mean)


class _Headlines(Speaker):
    """Sentences on single pairs, and the headline and notes on all of them."""

    def outcomes(self) -> list[str]:
        """Return a sentence for each arm that diverged, and for each that the baseline's divergence tells apart."""
        return [self._divergence(d) for d in self.comparison.divergence if d.diverged or self._told_apart(d)]

    def _told_apart(self, d: Divergence) -> bool:
        return d.p <= self.comparison.alpha

    def _divergence(self, d: Divergence) -> str:
        key = "diverges"
        if self._told_apart(d):
            key = "diverges more" if d.diverged * d.other_runs > d.other_diverged * d.runs else "diverges less"
        return self.say(
            key, arm=d.arm, k=d.diverged, runs=d.runs, j=d.other_diverged, others=d.other_runs,
            other=d.against if d.against is not None else self.words["the others"], p=f"Holm p {p_said(d.p)}",
        )  # fmt: skip

    def diverged_headline(self, outcomes: Sequence[str]) -> str:
        """Return what the headline begins with if arms diverged."""
        lost = sorted((a for a in self.comparison.arms if a.diverged), key=lambda a: -len(a.diverged) / a.runs)
        if not lost:
            return ""
        period = "." if self.words["stop"] else "。"
        if len(lost) == 1 and len(outcomes) == 1:
            return outcomes[0] + period
        if len(lost) == 1:
            worst = lost[0]
            return self.say("diverged", arm=worst.label, k=len(worst.diverged), runs=worst.runs) + period
        worst = lost[0]
        return self.say(
            "some diverged", k=len(lost), m=len(self.comparison.arms), arm=worst.label, j=len(worst.diverged),
            runs=worst.runs,
        )  # fmt: skip

    def headline(self, said: list[Sentence]) -> str:
        """Return the answer in one sentence."""
        if not said:
            return self.say("one arm" if len(self.comparison.arms) < 2 else "nothing")
        if all(s.kind == "not testable" for s in said):
            if len(said) == 1 and self.comparison.divergence:
                return said[0].text
            return self.say("nothing varies" if all(s.pair.difference.n > 1 for s in said) else "nothing")
        if self.comparison.best is not None:
            return self._best_headline(said, self.comparison.best)
        if self.comparison.baseline is not None:
            return self._against(said, self.comparison.baseline)
        return said[0].text if len(said) == 1 else self._all_pairs(said)

    def _against(self, said: list[Sentence], base: str) -> str:
        won = [s for s in said if s.kind == "resolved" and s.pair.better != base]
        wins = [s for s in won if not s.pair.ranked]  # those by ranks stand in their sentences
        if len(won) > 1 and not wins:
            return self.say("wins ranked", k=len(won), m=len(said), base=base)
        wins = wins or won
        if len(said) == 1 and said[0].kind in ("resolved", "not resolved") and not said[0].pair.ranked:
            return said[0].text
        if len(wins) == 1:
            return self.picked(wins[0], wins)
        if wins:
            return self.say("wins", k=len(wins), m=len(said), base=base, best=self.picked(wins[0], wins))
        worse = sum(s.kind == "resolved" for s in said)
        counts = ([self.say("worse count", k=worse)] if worse else []) + self._counts(said, skip=("resolved",))
        return self.say("no win", base=base, counts=self.words["comma"].join(counts))

    def _counts(self, said: Sequence[Sentence], skip: Sequence[Kind]) -> list[str]:
        number = {kind: sum(s.kind == kind for s in said) for kind in ORDER if kind not in skip}
        return [self.say(f"{kind} count", k=k) for kind, k in number.items() if k]

    def _rest(self, said: Sequence[Sentence], skip: Sequence[Kind] = ("resolved", "not resolved")) -> str:
        """` (1 equal, 2 not testable)`; empty if there is none."""
        counts = self._counts(said, skip)
        return self.say("rest", counts=self.words["comma"].join(counts)) if counts else ""

    def _all_pairs(self, said: list[Sentence]) -> str:
        resolved = [s for s in said if s.kind == "resolved"]
        tested = sum(s.kind in ("resolved", "not resolved") for s in said)
        if not tested:
            return said[0].text if len(said) == 1 else self.say("none resolved", m=len(said), rest=self._rest(said))
        if not resolved:
            return self.say("none resolved", m=tested, rest=self._rest(said))
        won = [s.pair.better for s in resolved]
        best = next((label for label in won if won.count(label) == len(self.comparison.arms) - 1), None)
        if best is not None:
            return self.say("beats all", arm=best, others=len(self.comparison.arms) - 1)
        best_text = self.picked(resolved[0], resolved)
        return self.say("some resolved", k=len(resolved), m=tested, rest=self._rest(said), best=best_text)

    def _best_headline(self, said: list[Sentence], top: str) -> str:
        worse = [s.pair.a for s in said if s.kind == "resolved"]
        near = [top, *(s.pair.a for s in reversed(said) if s.kind in ("not resolved", "equal"))]
        rest = self._rest(said, skip=("resolved", "not resolved", "equal"))
        m = len(worse) + len(near)
        lead = self.comparison.lead
        if len(near) == 1 and lead is not None:
            key = "is best of tested" if rest else "is best"
            return self.say(key, arm=top, m=m, figures=self.figures(lead, math.nan, size=True))
        if not worse:
            return self.say("none worse", m=m, arm=top, rest=rest)
        if len(near) > LISTED:
            return self.say("near best many", m=len(near), arm=top, k=len(worse), rest=rest)
        arms = self.words["comma"].join(near)
        if len(worse) == 1:
            return self.say("near best one", arms=arms, worse=worse[0], rest=rest)
        return self.say("near best", arms=arms, k=len(worse), rest=rest)

    def notes(self) -> list[str]:
        """Return what holds for all sentences: tuning, tests, intervals, corrections."""
        found = [*self._tuning(), *self._edges()]
        tested = [p for p in self.comparison.pairs if not math.isnan(p.p)]
        if self.comparison.best is not None and (seen := [p.detectable for p in tested if p.detectable > 0]):
            # One pooled spread, so that it is the same for all pairs.
            found.append(self.say("detectable to the best", size=rounded_up(seen[0])))
        if self.comparison.unequal:
            found.append(self.say("unequal"))
        if skewed := [p for p in tested if "skew" in p.difference.method]:
            pairs = (f"{p.a}{self.words['and']}{p.b}" for p in skewed[:LISTED])
            found.append(self.say("skewed", pairs=self.words["comma"].join(pairs) + (", ..." * (len(skewed) > LISTED))))
        if self.comparison.wild is not None:
            found.append(self.say("wild", arm=self.comparison.wild))
        intervals = [p for p in tested if not math.isnan(p.difference.low)]
        if intervals:
            found.append(self.say("chance", interval=self._interval(), p=self.words[self._correction]))
        if any(p.corrected for p in tested) and len(self.comparison.pairs) > 1:
            found.append(self.say("corrected intervals", level=100 * (1 - self.comparison.alpha)))
        return found

    def _tuning(self) -> list[str]:
        tuned = {a.label: self.facts.get(a.label, ArmFacts()).tuned for a in self.comparison.arms}
        untuned = [label for label, was in tuned.items() if was is False]
        if untuned and len(untuned) == len(tuned):
            return [self.say("untuned")]
        return [self.say("partly tuned", arms=self.words["comma"].join(untuned))] if untuned else []

    def _edges(self) -> list[str]:
        return [
            self.say("edge", arm=arm.label, setting=setting, end=self.words[end])
            for arm in self.comparison.arms
            for setting, end in self.facts.get(arm.label, ArmFacts()).edges.items()
        ]

    def _interval(self) -> str:
        if self.comparison.best is not None:
            return self.say("together", level=100 * (1 - self.comparison.alpha))
        methods = {pair.difference.method for pair in self.comparison.pairs}
        bootstrapped = any(method.startswith("BCa") for method in methods)
        return self.words["bootstrapped" if bootstrapped else "interval looks" if SEQUENTIAL in methods else "interval"]

    @property
    def _correction(self) -> str:
        return {"bh": "screened", "none": "uncorrected"}.get(self.comparison.correction, "corrected")
