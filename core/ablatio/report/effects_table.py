"""Effects of settings as a table: rows shared by the terminal and Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablatio.report.analysis.study_effects import StudyEffects
from ablatio.report.escape import csv_text, latex
from ablatio.report.latex import COMPARED, preamble, tabular
from ablatio.report.numbers import p_cell
from ablatio.report.statistics import Contrast, Term
from ablatio.report.words import Language, say

PAIRS = 15  # differences of one setting that a table shows; of more, the most certain
NAMED = 3  # aliases that a cell names; it counts the others


@dataclass(frozen=True, slots=True)
class EffectRow:
    """One contrast of a main effect or an interaction.

    contrast  `rope to alibi`; `layernorm to rmsnorm, alibi minus rope` for an interaction of two settings with two
              values; `layernorm, rope` for a combination of values, beyond the sum of their main effects
    aliases   effects that the design cannot tell from it; partial: those that it partly shares
    """

    effect: str
    contrast: str
    tested: Contrast
    aliases: tuple[str, ...]
    partial: tuple[str, ...]
    language: Language = "en"

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells under `heads("effect")`, signs as hyphens."""
        c = self.tested
        interval = "" if math.isnan(c.low) else f"[{c.low:+.4f}, {c.high:+.4f}]"
        partly = [say("partly", self.language, names=self._few(self.partial))] if self.partial else []
        aliases = "; ".join([*([self._few(self.aliases)] if self.aliases else []), *partly])
        return self.effect, self.contrast, f"{c.value:+.4f}", interval, p_cell(c.p), aliases

    def _few(self, names: Sequence[str]) -> str:
        text = say("comma", self.language).join(names[:NAMED])
        return text if len(names) <= NAMED else say("and more", self.language, names=text, k=len(names) - NAMED)


def effect_rows(found: StudyEffects, *, every: bool = False, language: Language = "en") -> list[EffectRow]:
    """Return all differences between the values of a setting, then interactions, the most certain first.

    every  include interactions that are only estimated as if no other one existed, and all combinations of values; else
           an interaction has its most certain contrast, and the first kind appears only if it is beyond chance
    """
    terms = {t.name: t for t in found.fit.terms}
    mains: list[Contrast] = []
    for name in found.settings:
        pairs = [c for c in found.screen.contrasts if c.name == name]
        mains += pairs if every or len(pairs) <= PAIRS else found.screen.of(name)[:PAIRS]
    crossed: dict[str, list[Contrast]] = {}
    for c in found.screen.contrasts:
        if len(c.factors) == 2 and (every or c.separate or c.p <= found.alpha):
            crossed.setdefault(c.name, []).append(c)
    shown = [c for name in crossed for c in (crossed[name] if every else found.screen.of(name)[:1])]
    shown.sort(key=lambda c: math.inf if math.isnan(c.p) else c.p)
    return [_row(c, terms, language) for c in (*mains, *shown)]


def effects_csv(found: StudyEffects) -> str:
    """CSV of all contrasts, with numbers in full precision."""
    header = ("score", "effect", "contrast", "difference", "low", "high", "p", "separate", "aliases", "partial_aliases")

    def line(row: EffectRow) -> list[object]:
        c = row.tested
        numbers = [None if math.isnan(x) else x for x in (c.value, c.low, c.high, c.p)]
        aliases = " = ".join(row.aliases), ", ".join(row.partial)
        return [found.metric, row.effect, row.contrast, *numbers, c.separate, *aliases]

    return csv_text(header, map(line, effect_rows(found, every=True)))


def effects_latex(found: StudyEffects) -> str:
    """LaTeX table of the effects, for the package booktabs."""
    rows = effect_rows(found)
    aliased = any(r.aliases or r.partial for r in rows)
    head = ["effect", "contrast", *COMPARED, *(["aliases"] if aliased else [])]
    lines = []
    for row in rows:
        effect, contrast, value, interval, p, aliases = row.cells
        words = [latex(effect), latex(contrast), *(f"${x}$" if x else "" for x in (value, interval, p))]
        lines.append([*words, *([latex(aliases)] if aliased else [])])
    table = tabular(head, "llrrr" + "l" * aliased, lines)
    return preamble(table, "intervals and p hold for all differences together") + table


def effects_caption(found: StudyEffects, language: Language = "en") -> str:
    """Caption of the table: score, meaning of intervals and p, and source of the spread."""
    if found.screen.scale == "none":
        return say("effects untested", language, metric=found.metric)
    scale = say(f"effects {found.screen.scale}", language, df=found.screen.df)
    return say("effects caption", language, metric=found.metric, count=len(found.screen.contrasts), scale=scale)


def _row(c: Contrast, terms: Mapping[str, Term], language: Language) -> EffectRow:
    term = terms.get(c.name)  # none for an interaction that is estimated as if it were the only one
    aliases, partial = (term.aliases, term.touched_by) if term else ((), ())
    return EffectRow(c.name, _contrast(c, language), c, aliases, partial, language)


def _contrast(c: Contrast, language: Language) -> str:
    if c.kind == "cell":
        return say("comma", language).join(levels[0] for levels in c.levels)
    (low, high), *others = c.levels
    crossed = [say("minus", language, given=given, without=without) for without, given in others]
    return "".join([say("from to", language, low=low, high=high), *crossed])
