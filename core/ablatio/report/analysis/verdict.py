"""The verdict of a comparison in words, in English or Chinese.

    verdict(compare(values, "gelu"), facts={"gelu": ArmFacts(parameters=10_000), ...}, unit="nats")

gives a headline and one sentence per pair.  Labels are inserted as they are; the output escapes them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ablatio.report.statistics import Comparison, Pair

Kind = Literal["resolved", "not resolved", "not testable"]
Language = Literal["en", "zh"]
MATCHED = 0.01  # relative difference up to which two parameter counts are equal
MANY = 1000  # seeds; larger numbers are not spelled out


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """Facts about an arm beside its score; None: unknown, and not mentioned.

    tuned  True if the learning rate was tuned for this arm
    """

    parameters: float | None = None
    tuned: bool | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """The sentence on one pair.

    fair  True for a resolved difference between arms of equal size of which none diverged
    """

    text: str
    kind: Kind
    pair: Pair
    fair: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """headline: the answer; sentences: largest resolved difference first; notes: on all of them."""

    headline: str
    sentences: tuple[Sentence, ...]
    notes: tuple[str, ...]


def verdict(
    comparison: Comparison,
    *,
    facts: Mapping[str, ArmFacts] | None = None,
    unit: str = "nats",
    language: Language = "en",
) -> Verdict:
    """Put a comparison into words.  `facts` by label; arms without facts are taken as they are."""
    speaker = _Speaker(comparison, facts or {}, unit, TEXTS[language])
    order: dict[Kind, int] = {"resolved": 0, "not resolved": 1, "not testable": 2}
    said = [speaker.sentence(pair) for pair in comparison.pairs]
    said.sort(key=lambda s: (order[s.kind], -abs(s.pair.difference.mean) if s.kind != "not testable" else 0))
    return Verdict(speaker.headline(said), tuple(said), tuple(speaker.notes()))


class _Speaker:
    def __init__(
        self, comparison: Comparison, facts: Mapping[str, ArmFacts], unit: str, words: Mapping[str, str]
    ) -> None:
        self.comparison, self.facts, self.unit, self.words = comparison, facts, unit, words

    def say(self, key: str, **values: object) -> str:
        return self.words[key].format(unit=self.unit, **values)

    def sentence(self, pair: Pair) -> Sentence:
        marks = [*self._unmatched(pair), *self._diverged(pair), *self._left_out(pair)]
        kind: Kind = "not testable" if math.isnan(pair.p) else "resolved" if pair.better else "not resolved"
        text = {"resolved": self._resolved, "not resolved": self._open, "not testable": self._silent}[kind](pair)
        diverged = any(self.comparison.arm(label).diverged for label in (pair.a, pair.b))
        fair = kind == "resolved" and not self._unmatched(pair) and not diverged
        return Sentence(self.words["mark"].join([text, *marks]), kind, pair, fair)

    def _resolved(self, pair: Pair) -> str:
        loser = pair.b if pair.better == pair.a else pair.a
        return self.say("resolved", winner=pair.better, loser=loser, figures=self._figures(pair, size=True))

    def _open(self, pair: Pair) -> str:
        if pair.difference.mean == 0 == pair.difference.sd:
            return self.say("equal", a=pair.a, b=pair.b, n=pair.difference.n)
        more = pair.more_seeds
        some = "need one" if more == 1 else "need"
        need = self.say(some, more=more) if more is not None and more <= MANY else self.say("need many", many=MANY)
        return self.say("open", a=pair.a, b=pair.b, figures=self._figures(pair), need=need)

    def _silent(self, pair: Pair) -> str:
        difference = pair.difference
        for label in (pair.a, pair.b):
            arm = self.comparison.arm(label)
            if not arm.n:
                key = "all diverged" if arm.runs else "no runs"
                return self.say(key, a=pair.a, b=pair.b, arm=label, runs=arm.runs)
        key = "no common" if not difference.n else "one seed" if difference.n == 1 else "no spread"
        mean = "" if math.isnan(difference.mean) else f"{difference.mean:+.3f}"
        return self.say(key, a=pair.a, b=pair.b, mean=mean, n=difference.n)

    def _figures(self, pair: Pair, size: bool = False) -> str:
        """`0.021 nats [0.012, 0.030], Holm p = 0.003, n = 5`; size: without the sign, which the words give."""
        d = pair.difference
        mean, low, high = (d.mean, d.low, d.high) if d.mean >= 0 or not size else (-d.mean, -d.high, -d.low)
        places = min(6, max(3, -math.floor(math.log10(max(high - low, 1e-9) / 2))))
        sign = "" if size else "+"
        test = {"holm": "Holm p", "dunnett": "Dunnett p", "bh": "Benjamini-Hochberg p", "none": "p"}
        p = "< 0.001" if pair.p < 0.001 else f"= {pair.p:.3f}" if pair.p < 0.1 else f"= {pair.p:.2f}"
        interval = f"[{low:{sign}.{places}f}, {high:{sign}.{places}f}]"
        chance = f"{test[self.comparison.correction]} {p}"
        return self.say("figures", mean=f"{mean:{sign}.{places}f}", interval=interval, p=chance, n=d.n)

    def _unmatched(self, pair: Pair) -> list[str]:
        first, second = (self.facts.get(label, ArmFacts()).parameters for label in (pair.a, pair.b))
        if not first or not second or max(first, second) / min(first, second) <= 1 + MATCHED:
            return []
        larger, share = (pair.a, first / second) if first > second else (pair.b, second / first)
        return [self.say("unmatched", arm=larger, share=f"{100 * (share - 1):.3g}")]

    def _diverged(self, pair: Pair) -> list[str]:
        arms = [self.comparison.arm(label) for label in (pair.a, pair.b)]
        return [
            self.say("diverged", arm=a.label, k=len(a.diverged), runs=a.runs)
            for a in arms
            if 0 < len(a.diverged) < a.runs
        ]

    def _left_out(self, pair: Pair) -> list[str]:
        return [self.say("left out", k=pair.left_out)] if pair.left_out and pair.difference.n else []

    def headline(self, said: list[Sentence]) -> str:
        if not said:
            return self.say("one arm")
        if all(s.kind == "not testable" for s in said):
            return self.say("nothing")
        resolved = [s for s in said if s.kind == "resolved"]
        base, pairs = self.comparison.baseline, len(said)
        wins = [s for s in resolved if s.pair.better != base]
        if base is not None and wins:
            return (
                wins[0].text if len(wins) == 1 else self.say("wins", k=len(wins), m=pairs, base=base, best=wins[0].text)
            )
        if base is not None:
            return self.say("no win", base=base, worse=len(resolved), open=pairs - len(resolved))
        if pairs == 1:
            return said[0].text
        if not resolved:
            return self.say("none resolved", m=pairs)
        won = [s.pair.better for s in resolved]
        best = next((label for label in won if won.count(label) == len(self.comparison.arms) - 1), None)
        if best is not None:
            return self.say("beats all", arm=best, others=len(self.comparison.arms) - 1)
        return self.say("some resolved", k=len(resolved), m=pairs, best=resolved[0].text)

    def notes(self) -> list[str]:
        tuned = {a.label: self.facts.get(a.label, ArmFacts()).tuned for a in self.comparison.arms}
        untuned = [label for label, was in tuned.items() if was is False]
        found = []
        if untuned and len(untuned) == len(tuned):
            found.append(self.say("untuned"))
        elif untuned:
            found.append(self.say("partly tuned", arms=self.words["comma"].join(untuned)))
        if not all(math.isnan(pair.p) for pair in self.comparison.pairs):
            found.append(self.say("chance", interval=self.words[self._interval], p=self.words[self._correction]))
        return found

    @property
    def _interval(self) -> str:
        bootstrapped = any(pair.difference.method.startswith("BCa") for pair in self.comparison.pairs)
        return "bootstrapped" if bootstrapped else "interval"

    @property
    def _correction(self) -> str:
        return {"bh": "screened", "none": "uncorrected"}.get(self.comparison.correction, "corrected")


TEXTS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "mark": "; ",
        "comma": ", ",
        "figures": "{mean} {unit} {interval}, {p}, n = {n}",
        "resolved": "{winner} beats {loser} by {figures}",
        "open": "{a} and {b}: not resolved ({figures}), {need}",
        "need": "about {more} more seeds needed",
        "need one": "about one more seed needed",
        "need many": "more than {many} more seeds needed",
        "equal": "{a} and {b} gave identical numbers in all {n} seeds: the setting has no effect here",
        "one seed": "{a} and {b}: only one shared seed ({mean} {unit}), no test possible",
        "no common": "{a} and {b}: no test possible, they share no finished seed",
        "no spread": "{a} and {b}: exactly {mean} {unit} in each of {n} seeds, no test possible",
        "all diverged": "{a} and {b}: no test possible, all {runs} runs of {arm} diverged",
        "no runs": "{a} and {b}: no test possible, {arm} has no finished run",
        "unmatched": "unmatched: {arm} has {share} % more parameters",
        "diverged": "{arm} diverged in {k} of {runs} runs, which this difference leaves out",
        "left out": "runs left out because the other arm lacks their seed: {k}",
        "one arm": "Only one arm: nothing to compare it with.",
        "nothing": "No test possible: a comparison needs two arms with at least two shared seeds (seed=1,2,3).",
        "wins": "{k} of {m} arms beat {base}. Largest difference: {best}",
        "no win": "No arm beats {base}: {worse} worse, {open} not resolved.",
        "none resolved": "None of {m} pairs is resolved.",
        "beats all": "{arm} beats each of the other {others} arms.",
        "some resolved": "{k} of {m} pairs resolved. Largest difference: {best}",
        "untuned": "The learning rate was not tuned for any arm: a difference may come from the learning rate.",
        "partly tuned": "The learning rate was not tuned for {arms}, which favors the other arms.",
        "chance": "{interval}; {p}.",
        "interval": "Each interval covers its true difference in 95 of 100 studies",
        "bootstrapped": "Bootstrap intervals are too narrow: with 5 seeds they cover the truth in 84 of 100 studies",
        "corrected": "p is corrected for all comparisons",
        "screened": "about 5 in 100 of the differences called resolved are false",
        "uncorrected": "p is not corrected: of 20 equal arms about one is called better or worse",
    },
    "zh": {
        "mark": "；",
        "comma": "、",
        "figures": "{mean} {unit} {interval}，{p}，n = {n}",
        "resolved": "{winner} 优于 {loser}，相差 {figures}",
        "open": "{a} 与 {b}：未能分辨（{figures}），{need}",
        "need": "大约还需 {more} 个随机种子",
        "need one": "大约还需 1 个随机种子",
        "need many": "还需 {many} 个以上的随机种子",
        "equal": "{a} 与 {b} 在全部 {n} 个种子下结果完全相同：该设置在此不起作用",
        "one seed": "{a} 与 {b}：只有一个种子（{mean} {unit}），无法下结论",
        "no common": "{a} 与 {b}：无法下结论，没有两者都有结果的种子",
        "no spread": "{a} 与 {b}：{n} 个种子的差值均为 {mean} {unit}，分毫不差，无法下结论",
        "all diverged": "{a} 与 {b}：无法下结论，{arm} 的 {runs} 次运行全部发散",
        "no runs": "{a} 与 {b}：无法下结论，{arm} 没有完成的运行",
        "unmatched": "规模不等：{arm} 的参数多 {share} %",
        "diverged": "{arm} 的 {runs} 次运行中有 {k} 次发散，未计入此差值",
        "left out": "因缺少同种子的对照而未计入的运行：{k}",
        "one arm": "只有一个方案，没有可比较的对象。",
        "nothing": "无法下结论：至少需要两个方案，且共有两个以上的种子（seed=1,2,3）。",
        "wins": "{m} 个方案中有 {k} 个优于 {base}。差距最大的：{best}",
        "no win": "没有方案优于 {base}：{worse} 个更差，{open} 个未能分辨。",
        "none resolved": "{m} 组比较均未能分辨。",
        "beats all": "{arm} 优于其余 {others} 个方案中的每一个。",
        "some resolved": "{m} 组比较中有 {k} 组可以分辨。差距最大的：{best}",
        "untuned": "所有方案都没有调过学习率：差异可能来自学习率。",
        "partly tuned": "没有为 {arms} 调学习率：这对其他方案有利。",
        "chance": "{interval}；{p}。",
        "interval": "每个区间在 100 次研究中有 95 次包含该差值的真值",
        "bootstrapped": "区间由自助法得出，种子少时偏窄（5 个种子时 100 次研究中只有 84 次包含真值）",
        "corrected": "p 值已按全部比较校正",
        "screened": "被判为可分辨的差值中，约有 5 % 是假的",
        "uncorrected": "p 值未校正：20 个完全相同的方案中约有一个会被误判",
    },
}
