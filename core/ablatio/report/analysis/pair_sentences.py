"""One sentence per pair of arms: what was found, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablatio.report.analysis.budgets import TIME, More, differing
from ablatio.report.analysis.verdict_types import ArmFacts, Kind, Sentence
from ablatio.report.numbers import p_said
from ablatio.report.statistics import Comparison, Difference, Pair
from ablatio.report.statistics.comparison import excludes_zero
from ablatio.report.statistics.selected import interval_of_picked

PLANNED = 100  # seeds; a new study of more is not suggested
TESTS = {"holm": "Holm p", "dunnett": "Dunnett p", "bh": "Benjamini-Hochberg p", "none": "p", "hsu": "p"}
NAMED = 2  # budgets in one sentence; the table has all


class Speaker:
    """Puts pairs into words.

    words   the texts of one language
    states  first arm of a pair -> what a sequential study says of the state of the comparison
    """

    def __init__(
        self,
        comparison: Comparison,
        facts: Mapping[str, ArmFacts],
        unit: str,
        words: Mapping[str, str],
        states: Mapping[str, str],
    ) -> None:
        self.comparison, self.facts, self.unit, self.words, self.states = comparison, facts, unit, words, states

    def say(self, key: str, **values: object) -> str:
        """Fill in a text."""
        return self.words[key].format(unit=self.unit, **values)

    def sentence(self, pair: Pair) -> Sentence:
        """Return the sentence on a pair, with the budgets that differ and the runs that are not in it."""
        kind: Kind = (
            "not testable" if math.isnan(pair.p) else "resolved" if pair.better else "equal" if pair.equal
            else "not resolved"
        )  # fmt: skip
        more = self._more(pair)
        text = {
            "resolved": self._resolved, "not resolved": self._open, "equal": self._equal, "not testable": self._silent,
        }[kind](pair)  # fmt: skip
        marks = [*self._unmatched(pair, more), *self._diverged(pair), *self._left_out(pair)]
        diverged = any(self.comparison.arm(label).diverged for label in (pair.a, pair.b))
        fair = kind == "resolved" and not diverged and all(m.budget == TIME for m in more)
        return Sentence(self.words["mark"].join([text, *marks]), kind, pair, fair, self.comparison.baseline is not None)

    def _resolved(self, pair: Pair) -> str:
        if self.comparison.best is not None:
            return self.say("worse than best", arm=pair.a, figures=self.figures(pair.difference, pair.p, size=True))
        loser = pair.b if pair.better == pair.a else pair.a
        if pair.ranked:
            return self.say("ranked", winner=pair.better, loser=loser, p=self.chance(pair.p), n=pair.difference.n)
        figures = self.figures(pair.difference, pair.p, size=True)
        text = self.say("resolved", winner=pair.better, loser=loser, figures=figures)
        return self.words["mark"].join([text, self.states[pair.a]]) if pair.a in self.states else text

    def _open(self, pair: Pair) -> str:
        if pair.ranked:
            return self.say("ranked open", a=pair.a, b=pair.b, p=self.chance(pair.p), n=pair.difference.n)
        figures = self.open_figures(pair)
        if self.comparison.best is not None:
            return self.say("best open", arm=pair.a, figures=figures)  # a note has what could have been seen
        if pair.a in self.states:  # more seeds come by plan
            return self.say("open state", a=pair.a, b=pair.b, state=self.states[pair.a], figures=figures)
        said = [self.say("open", a=pair.a, b=pair.b, figures=figures)]
        if pair.detectable > 0 and math.isfinite(pair.detectable):
            said.append(self.say("detectable", size=rounded_up(pair.detectable)))
        if pair.planned_seeds is not None and pair.planned_seeds <= PLANNED:
            said.append(self.say("new study", n=pair.planned_seeds))
        return self.words["mark"].join(said)

    def picked(self, sentence: Sentence, among: Sequence[Sentence]) -> str:
        """Return the sentence of a headline on the largest of the resolved differences, of which only it is named.

        Its usual interval would cover less often than it says, so one is given that allows for the choice.  Where both
        are the same to the printed digits, as far from the limit of the test, the sentence stays as it is.
        """
        pair, d = sentence.pair, sentence.pair.difference
        if len(self.comparison.pairs) == 1 or pair.ranked or self.comparison.best is not None:
            return sentence.text
        interval = interval_of_picked(self.comparison, pair, [s.pair for s in among])
        mean, usual = self._digits(d, size=True)
        if interval is None:
            figures = self.say("figures picked alone", mean=mean, p=self.chance(pair.p), n=d.n)
        else:
            mean, shown = self._digits(replace(d, low=interval[0], high=interval[1]), size=True)
            # Two intervals that read the same would only make the reader look for a difference.
            if shown == usual:
                return sentence.text
            # An interval with 0 beside a resolved difference needs a word: the test found its sign, not its size.
            key = "figures picked" if excludes_zero(*interval) else "figures picked open"
            figures = self.say(key, mean=mean, interval=shown, p=self.chance(pair.p), n=d.n)
        # The sentence below keeps the usual interval: only the headline picks one difference out of many.
        return sentence.text.replace(self.figures(d, pair.p, size=True), figures)

    def _equal(self, pair: Pair) -> str:
        return self.say("equal", a=pair.a, b=pair.b, n=pair.difference.n)

    def _silent(self, pair: Pair) -> str:
        difference = pair.difference
        for label in (pair.a, pair.b):
            arm = self.comparison.arm(label)
            if not arm.n:
                key = "all diverged" if arm.runs else "no runs"
                return self.say(key, a=pair.a, b=pair.b, arm=label, runs=arm.runs)
        if self.comparison.best is not None and not difference.n:
            return self.say("best untested", arm=pair.a)
        if pair.a in self.states:
            return self.say("state", a=pair.a, b=pair.b, state=self.states[pair.a])
        key = "no common" if not difference.n else "one seed" if difference.n == 1 else "no spread"
        mean = "" if math.isnan(difference.mean) else f"{difference.mean:+.3f}"
        return self.say(key, a=pair.a, b=pair.b, mean=mean, n=difference.n)

    def chance(self, p: float) -> str:
        """`Holm p = 0.003`."""
        return f"{TESTS[self.comparison.correction]} {p_said(p)}"

    def open_figures(self, pair: Pair) -> str:
        """Numbers of a difference that is not resolved; an interval without 0 has the reason beside it."""
        d, m, level = pair.difference, len(self.comparison.pairs), 100 * (1 - self.comparison.alpha)
        if self.comparison.best is not None or not excludes_zero(d.low, d.high):
            return self.figures(d, pair.p)
        if pair.corrected is None:
            return self.figures(d, pair.p, key="figures other test" if m == 1 else "figures uncorrected")
        _, wide = self._digits(replace(d, low=pair.corrected[0], high=pair.corrected[1]), size=False)
        key = "figures level" if m == 1 else "figures corrected" if level == 95 else "figures corrected level"
        return self.figures(d, pair.p, key=key, wide=wide, m=m, level=f"{level:g}")

    def figures(self, d: Difference, p: float, size: bool = False, key: str = "figures", **more: object) -> str:
        """`0.021 nats [0.012, 0.030], Holm p = 0.003, n = 5`; size: without the sign, which the words give."""
        number, interval = self._digits(d, size)
        if math.isnan(p):
            return self.say("figures alone", mean=number, interval=interval, n=d.n)
        return self.say(key, mean=number, interval=interval, p=self.chance(p), n=d.n, **more)

    def _digits(self, d: Difference, size: bool) -> tuple[str, str]:
        """Mean and interval with as many digits as the interval deserves; size: without the sign."""
        mean, low, high = (d.mean, d.low, d.high) if d.mean >= 0 or not size else (-d.mean, -d.high, -d.low)
        # As many places as show the first digit of the interval's half width.
        places = min(6, max(3, -math.floor(math.log10(max(high - low, 1e-9) / 2))))
        sign = "" if size else "+"
        low, high = low + 0.0, high + 0.0  # -0.0 is 0
        interval = f"[{low:{sign}.{places}f}, {high:{sign}.{places}f}]"
        return f"{mean:{sign}.{places}f}", interval

    def _more(self, pair: Pair) -> list[More]:
        none = ArmFacts()
        return differing(self.facts.get(pair.a, none).given, self.facts.get(pair.b, none).given)

    def _unmatched(self, pair: Pair, more: list[More]) -> list[str]:
        """Name the budgets that differ most, each with the arm that has more: that of the winner first."""
        named = more[:NAMED]
        parts = []
        for arm in sorted({m.arm for m in named}, key=lambda i: ((pair.a, pair.b)[i] != pair.better, i)):
            amounts = self.words["and"].join(self._amount(m) for m in named if m.arm == arm)
            parts.append(self.say("has more", arm=(pair.a, pair.b)[arm], amounts=amounts))
        return [self.say("unmatched", parts=self.words["comma"].join(parts))] if parts else []

    def _amount(self, more: More) -> str:
        what = self.words[more.budget]
        if more.ratio < 1.95:
            return self.say("more", share=f"{100 * (more.ratio - 1):.3g}", what=what)
        if more.ratio < 2.05:
            return self.say("twice", what=what)
        return self.say("times", ratio=f"{more.ratio:.3g}", what=what)

    def _diverged(self, pair: Pair) -> list[str]:
        arms = [self.comparison.arm(label) for label in (pair.a, pair.b)]
        return [
            self.say("diverged", arm=a.label, k=len(a.diverged), runs=a.runs)
            for a in arms
            if 0 < len(a.diverged) < a.runs
        ]

    def _left_out(self, pair: Pair) -> list[str]:
        return [self.say("left out", k=pair.left_out)] if pair.left_out and pair.difference.n else []


def rounded_up(size: float) -> str:
    """Two significant digits, never less than the number: 0.1412 -> 0.15."""
    step = 10 ** (math.floor(math.log10(size)) - 1)
    return f"{math.ceil(size / step - 1e-9) * step:.2g}"
