"""The verdict on effects of settings in words: every number with the levels, and the aliases, that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablatio.report.analysis.study_effects import StudyEffects, fitted_effects
from ablatio.report.analysis.verdict import Language, Verdict
from ablatio.report.numbers import p_said
from ablatio.report.statistics.explanations import TIED, Alternative
from ablatio.report.statistics.screening import Contrast

__all__ = ["WORDS", "effects_verdict", "fitted_effects"]

NAMED = 3  # aliases and alternatives that a sentence names; it counts the others


def effects_verdict(found: StudyEffects | None, unit: str, alpha: float) -> Mapping[Language, Verdict]:
    """Verdict of a study that estimates effects: those beyond chance, and what else may be their cause.

    A main effect is claimed if a contrast of it is beyond chance (corrected over all contrasts) and no interaction
    explains the same data about as well.  Otherwise the sentence names the interactions.

    unit   of the compared score; alpha: chance of any false claim in a study without effects
    """
    if found is None or not found.settings:
        return {}
    return {language: _Speaker(found, unit, words).verdict() for language, words in WORDS.items()}


class _Speaker:
    def __init__(self, found: StudyEffects, unit: str, words: Mapping[str, str]) -> None:
        self.found, self.words = found, words
        self.unit = words["bits"] if found.metric == "val/bpb" else unit
        mains = found.claimed(1)
        # Full aliases are a property of the design, and are named beside the claim; only other explanations forbid it.
        self.unclear = [n for n in mains if found.instead(n) and not found.aliases(n)]
        self.sure = [n for n in mains if n not in self.unclear]
        self.crossed = found.claimed(2)
        # Beside unclear effects the interaction is already named as their explanation.
        self.lone = None if self.unclear else found.lone_interaction

    def say(self, key: str, **values: object) -> str:
        return self.words[key].format(**values)

    def listed(self, names: Sequence[str], most: int = 1 << 30) -> str:
        text = self.words["comma"].join(names[:most])
        return text if len(names) <= most else self.say("more", names=text, k=len(names) - most)

    def verdict(self) -> Verdict:
        shown = [self.main(name) for name in self.sure]
        shown += [self.crossing(name) for name in self.crossed]
        shown += self.unexplained()
        if self.lone is not None:
            shown.append(self.lone_interaction(self.lone))
        rest = [n for n in self.found.settings if n not in (*self.sure, *self.unclear)]
        crossed = [n for n in self.found.interactions if n not in self.crossed]
        rest += crossed if len(crossed) <= NAMED else []
        if rest and shown and self.found.screen.scale != "none":
            shown.append(self.say("rest", names=self.listed(rest)))
        return Verdict(self.headline(), (), tuple(self.notes()), effects=tuple(shown))

    def headline(self) -> str:
        found, m = self.found, len(self.found.settings)
        if found.screen.scale == "none":
            return self.say("untested", m=m)
        parts = []
        aliased = [n for n in self.sure if found.aliases(n)]
        if clear := [n for n in self.sure if n not in aliased]:
            parts.append(self.say("some", k=len(clear), m=m, names=self.listed(clear)))
        if aliased:
            parts.append(self.say("some aliased", k=len(aliased), m=m, names=self.listed(aliased)))
        if self.crossed:
            parts.append(self.say("crossed", names=self.listed(self.crossed)))
        if self.unclear:
            parts.append(self.say("unclear", k=len(self.unclear), m=m, instead=self.shared(self.unclear)[0]))
        if self.lone is not None:
            parts.append(self.say("lone", name=self.lone.name))
        return self.words["space"].join(parts) or self.say("none", m=m, size=f"{self.reach():.3f}", unit=self.unit)

    def reach(self) -> float:
        """Half the widest interval of a difference between levels."""
        return max((c.high - c.value for c in self.found.screen.contrasts if c.kind == "pair"), default=math.nan)

    def main(self, name: str) -> str:
        """Sentence on a main effect: the difference between two of its levels."""
        return self.words["mark"].join([self.difference(name), *self.aliased(name), *self.dismissed(name)])

    def difference(self, name: str) -> str:
        best, *others = self.found.screen.of(name)
        if others:  # of two levels the order is that of the axis
            best, others = upward(best), [upward(c) for c in others]
        low, high = best.levels[0]
        several = self.say("largest", m=len(others) + 1) if others else ""
        text = self.say("effect", factor=name, low=low, high=high, which=several, figures=self.figures(best))
        also = [
            self.say("also", low=c.levels[0][0], high=c.levels[0][1], size=f"{c.value:+.3f}")
            for c in others
            if c.p <= self.found.alpha
        ]
        return self.words["mark"].join(
            [text, *([self.say("resolved", pairs=self.listed(also, NAMED))] if also else [])]
        )

    def crossing(self, name: str) -> str:
        """Sentence on an interaction, with its aliases."""
        best = self.found.screen.of(name)[0]
        return self.words["mark"].join([self.told(best), *self.aliased(name)])

    def told(self, best: Contrast) -> str:
        if best.kind == "cell":
            cell = self.listed([levels[0] for levels in best.levels])
            return self.say("cell", name=best.name, cell=cell, figures=self.figures(best))
        best = swapped(best) if best.value < 0 else best
        (low, high), (without, given) = best.levels
        return self.say(
            "crossing", name=best.name, low=low, high=high, given=given, without=without, figures=self.figures(best)
        )

    def lone_interaction(self, best: Contrast) -> str:
        others = [a.name for a in self.found.instead(best.name)]
        also = [self.say("or one of", names=self.listed(others, NAMED))] if others else [self.words["or none"]]
        return self.words["mark"].join([self.told(best), *also])

    def aliased(self, name: str) -> list[str]:
        names = self.found.aliases(name)
        return [self.say("aliased", names=self.listed(names, NAMED))] if names else []

    def dismissed(self, name: str) -> list[str]:
        """The interaction that comes nearest to explaining the data without a claimed effect."""
        best = next(iter(self.found.alternatives.get(name, ())), None)
        if best is None or self.found.aliases(name):
            return []
        times = 1 / max(best.ratio, 1e-9)
        return [self.say("dismissed", name=best.name, times="> 1000" if times > 1000 else f"{times:.0f}")]

    def unexplained(self) -> list[str]:
        """Sentences on settings whose effect one interaction explains about as well, grouped by that interaction."""
        left, sentences = list(self.unclear), []
        while left:
            best, others = self.shared(left)
            group = [n for n in left if best in (a.name for a in self.found.instead(n))]
            left = [n for n in left if n not in group]
            also = self.say("or also", names=self.listed(others, NAMED)) if others else ""
            if len(group) == 1:
                sentences.append(self.say("instead", effect=self.difference(group[0]), name=best, also=also))
            else:
                names = self.listed(group)
                sentences.append(self.say("instead of all", k=len(group), names=names, name=best, also=also))
        return sentences

    def shared(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """(interaction that explains most of these effects best, others that explain some as well and as simply)."""
        total: dict[str, float] = {}
        each = [{a.name: a for a in self.found.instead(name)} for name in names]
        for known in each:
            for other in known.values():
                total[other.name] = total.get(other.name, 0.0) + 1 + min(1.0, other.ratio / 1000)
        best = max(total, key=lambda n: round(total[n], TIED))
        return best, [n for n in total if n != best and any(self.rivals(known, best, n) for known in each)]

    def rivals(self, known: Mapping[str, Alternative], best: str, other: str) -> bool:
        """True if the other interaction explains an effect about as well as the best one, with no more terms."""
        if best not in known or other not in known:
            return False
        return known[other].ratio >= self.found.least * known[best].ratio and known[other].terms <= known[best].terms

    def notes(self) -> list[str]:
        found, shown = self.found, list[str]()
        if found.follow_up and (self.unclear or any(found.aliases(n) for n in (*self.sure, *self.crossed))):
            shown.append(self.say("follow up", runs=found.follow_up.runs, command=found.follow_up.command))
        if found.fit.diverged:
            shown.append(self.say("diverged", k=found.fit.diverged))
        if found.screen.scale != "none":
            key = "by residual" if found.screen.scale == "residual" else "by lenth"
            shown.append(self.say(key, k=len(found.screen.contrasts), df=f"{found.screen.df:g}"))
        return shown

    def figures(self, c: Contrast) -> str:
        """`+0.021 nats [+0.012, +0.030], corrected p = 0.003`."""
        # As many places as show the first digit of the interval's half width.
        places = min(6, max(3, -math.floor(math.log10(max(c.high - c.low, 1e-9) / 2))))
        number = f"{c.value:+.{places}f}"
        return self.say(
            "figures",
            size=number,
            unit=self.unit,
            low=f"{c.low:+.{places}f}",
            high=f"{c.high:+.{places}f}",
            p=p_said(c.p),
        )


def upward(c: Contrast) -> Contrast:
    """A difference between levels with its sign turned to plus by exchanging the levels."""
    if c.value >= 0:
        return c
    levels = tuple((high, low) for low, high in c.levels)
    return Contrast(c.factors, c.kind, levels, -c.value, -c.high, -c.low, c.p, c.separate)


def swapped(c: Contrast) -> Contrast:
    """The same crossing with the two levels of the second factor exchanged, which turns its sign."""
    first, (x, y) = c.levels
    return Contrast(c.factors, c.kind, (first, (y, x)), -c.value, -c.high, -c.low, c.p, c.separate)


WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "comma": ", ", "mark": "; ", "space": " ", "bits": "bits/byte",
        "more": "{names} and {k} more",
        "figures": "{size} {unit} [{low}, {high}], corrected p {p}",
        "effect": "{factor}, from {low} to {high}{which}: {figures}",
        "largest": ", the clearest of {m} differences",
        "resolved": "also resolved: {pairs}",
        "also": "from {low} to {high} {size}",
        "crossing": "{name}: from {low} to {high}, the change with {given} exceeds that with {without} by {figures}",
        "cell": "{name}: {cell} together, beyond the sum of their effects: {figures}",
        "aliased": "this design cannot tell it from {names}",
        "dismissed": "without it, the best explanation by an interaction ({name}) is {times} times less likely",
        "instead": "{effect}; one interaction, {name}, explains this about as well{also}: no main effect is claimed",
        "instead of all": "{k} settings stand out ({names}); one interaction, {name}, explains each of them about "
        "as well{also}: none of them is claimed as a main effect",
        "or also": " (so do {names})",
        "or one of": "about as good is, instead of it, {names}",
        "or none": "no other single interaction explains it about as well",
        "some": "{k} of {m} settings have an effect: {names}.",
        "some aliased": "{k} of {m} settings stand out, each aliased with interactions: {names}.",
        "crossed": "Interactions beyond chance: {names}.",
        "unclear": "{k} of {m} settings stand out, but one interaction, {instead}, gives this pattern about as well: "
        "none of these is claimed as a main effect.",
        "lone": "One interaction is beyond chance, most likely {name}.",
        "none": "None of {m} settings is resolved: only effects above {size} {unit} are seen here.",
        "untested": "None of {m} settings can be tested: equal arms, or the smaller effects, do not differ at all.",
        "rest": "Not resolved: {names}.",
        "follow up": "{runs} more runs tell them apart: {command}",
        "diverged": "Effects leave out runs that diverged: {k}.",
        "by residual": "Intervals and p hold for all {k} differences together (spread between runs of equal arms, "
        "{df} degrees of freedom).",
        "by lenth": "Intervals and p hold for all {k} differences together; without replicates the spread comes from "
        "the smaller effects (Lenth's method), which needs most of them to be zero. A second seed would measure it.",
    },
    "zh": {
        "comma": "、", "mark": "；", "space": "", "bits": "bits/byte",
        "more": "{names} 等另外 {k} 个",
        "figures": "{size} {unit} [{low}, {high}]，校正 p {p}",
        "effect": "{factor}，从 {low} 到 {high}{which}：{figures}",
        "largest": "（{m} 个差值中最明确的）",
        "resolved": "另外可以分辨：{pairs}",
        "also": "从 {low} 到 {high} {size}",
        "crossing": "{name}：从 {low} 到 {high}，在 {given} 下的变化比在 {without} 下大 {figures}",
        "cell": "{name}：{cell} 合用，超出各自效应之和：{figures}",
        "aliased": "此设计无法将其与 {names} 区分",
        "dismissed": "若无此效应，最好的交互作用解释（{name}）的可能性小 {times} 倍",
        "instead": "{effect}；单个交互作用 {name} 的解释大致同样好{also}：不认定主效应",
        "instead of all": "{k} 个设置突出（{names}）；单个交互作用 {name} 对其中每一个的解释大致同样好{also}："
        "均不认定为主效应",
        "or also": "（{names} 亦然）",
        "or one of": "大致同样好的其他解释：{names}",
        "or none": "没有其他单个交互作用的解释大致同样好",
        "some": "{m} 个设置中有 {k} 个有效应：{names}。",
        "some aliased": "{m} 个设置中有 {k} 个突出，但都与交互作用混杂：{names}。",
        "crossed": "超出偶然的交互作用：{names}。",
        "unclear": "{m} 个设置中有 {k} 个突出，但单个交互作用 {instead} 大致同样能给出这一模式：均不认定为主效应。",
        "lone": "有一个交互作用超出偶然，最可能是 {name}。",
        "none": "{m} 个设置均未能分辨：此处只能看到大于 {size} {unit} 的效应。",
        "untested": "{m} 个设置均无法检验：相同方案之间或较小的效应之间毫无差别。",
        "rest": "未能分辨：{names}。",
        "follow up": "再运行 {runs} 次即可区分：{command}",
        "diverged": "效应未计入发散的运行：{k}。",
        "by residual": "区间与 p 对全部 {k} 个差值同时成立（相同方案各次运行之间的离散，自由度 {df}）。",
        "by lenth": "区间与 p 对全部 {k} 个差值同时成立；没有重复运行，离散由较小的效应估计（Lenth 法），"
        "要求其中大多数为零。再加一个种子即可直接测量。",
    },
}  # fmt: skip
