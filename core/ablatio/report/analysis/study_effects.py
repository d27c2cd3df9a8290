"""Effects of settings that vary together, estimated from all runs of a study at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablatio.report.analysis.follow_up import FollowUp, follow_up
from ablatio.report.read.notes import note
from ablatio.report.read.run import Run, terms_of
from ablatio.report.read.table import Table
from ablatio.report.statistics import Factors, Screen, screen
from ablatio.report.statistics.contrasts import Model, model_of
from ablatio.report.statistics.effects import fit
from ablatio.report.statistics.explanations import Alternative, alternatives, as_well
from ablatio.report.statistics.screening import Contrast
from ablatio.sweep.study import design_facts


@dataclass(frozen=True, slots=True)
class StudyEffects:
    """Effects of a study on one score.

    fit           least squares: a value with an interval for each level
    screen        all differences between levels, tested together
    alternatives  claimed effect -> interactions that explain the same data without it, the best first
    metric        the score: bits per byte if the compared score depends on the tokenizer and tokenizers differ
    follow_up     command that adds runs which tell claimed effects from their aliases
    """

    fit: Factors
    screen: Screen
    alternatives: Mapping[str, tuple[Alternative, ...]]
    metric: str
    alpha: float
    follow_up: FollowUp | None = None

    @property
    def settings(self) -> list[str]:
        """Factors whose main effect is estimated."""
        return [t.factors[0] for t in self.fit.terms if len(t.factors) == 1]

    @property
    def interactions(self) -> list[str]:
        """Interactions of two settings that are estimated together with all others."""
        found = [c.name for c in self.screen.contrasts if len(c.factors) == 2 and c.separate]
        return list(dict.fromkeys(found))

    def claimed(self, order: int) -> list[str]:
        """Terms of this order with a contrast beyond chance, the most certain first."""
        found = [c for c in self.screen.contrasts if c.p <= self.alpha and len(c.factors) == order and c.separate]
        return list(dict.fromkeys(c.name for c in sorted(found, key=lambda c: (c.p, -abs(c.value)))))

    def aliases(self, name: str) -> tuple[str, ...]:
        """Effects that no data of this design can tell from a term."""
        return next((t.aliases for t in self.fit.terms if t.name == name), ())

    def instead(self, name: str) -> list[Alternative]:
        """Interactions that explain the data about as well without this effect."""
        least = self.least
        return [a for a in self.alternatives.get(name, ()) if a.ratio >= least]

    @property
    def least(self) -> float:
        """Ratio of likelihoods below which an explanation is dismissed."""
        return 1 / _tolerance(self.screen)

    @property
    def lone_interaction(self) -> Contrast | None:
        """The best of the interactions that cannot be told from one another, if it is beyond chance."""
        found = [c for c in self.screen.contrasts if c.p <= self.alpha and not c.separate]
        return min(found, key=lambda c: (c.p, -abs(c.value)), default=None)


def fitted_effects(table: Table, metric: str) -> StudyEffects | None:
    """Estimate the effects of settings, if two or more vary together; why there are none becomes a note."""
    runs = [r for r in table.counted if metric in r.scores]
    varied = [k for k in dict.fromkeys(k for r in runs for k in r.arm) if len({r.arm.get(k) for r in runs}) > 1]
    if len(varied) < 2 or not design_facts(table.study)["factors"]:
        return None
    if any(axis.interval for axis in table.study.axes):  # each value occurs once: see `search.search_of`
        return None
    if table.study.sequential:
        table.notes.append(note("effects: looks"))
        return None
    # The score is comparable already, and budgets may differ, named: a text is all that makes scores of two worlds.
    if len({terms_of(r).text for r in runs}) > 1:
        table.notes.append(note("effects: texts"))
        return None
    table.notes += _on_budgets(runs, varied)
    # The order of the axes: without it the order in which runs ended would decide what is "from" and what is "to".
    levels = {axis.key: axis.values for axis in table.study.axes}
    try:
        model = model_of(
            [r.arm for r in runs], [r.seed for r in runs], [r.scores[metric] for r in runs], levels=levels
        )  # fmt: skip
    except ValueError:
        return None
    if not model.layout.fitted:
        return None
    return _tested(model, table, metric)


def _tested(model: Model, table: Table, score: str) -> StudyEffects:
    lost = sum(run.state == "diverged" and run.role == "run" for run in table.runs)
    found = fit(model, len(model.y) + lost)
    tested, alpha = screen(model), float(table.study.settings.get("alpha", 0.05))
    claimed = {c.name: c for c in tested.contrasts if c.p <= alpha}
    plain = [name for name, c in claimed.items() if len(c.factors) == 1]
    lone = [name for name, c in claimed.items() if not c.separate]
    # Of interactions that cannot be told from one another only the best is claimed, so only it needs alternatives.
    best = sorted(lone, key=lambda name: (claimed[name].p, -abs(claimed[name].value)))[:1]
    other = alternatives(model, [*plain, *best], tested.sd, _tolerance(tested))
    made = StudyEffects(found, tested, other, score, alpha)
    unclear = [n for n in claimed if made.aliases(n) or made.instead(n)]
    if not unclear:
        return made
    # Planned only when it is needed: it composes all arms and loads torch.
    more = follow_up(table)
    return StudyEffects(found, tested, other, score, alpha, more)


def _tolerance(tested: Screen) -> float:
    return as_well(tested.critical if tested.scale == "residual" else math.nan)


def _on_budgets(runs: Sequence[Run], varied: Sequence[str]) -> list[str]:
    """The note on settings that change the token budget; empty if all runs have the same one."""
    budgets = sorted(terms_of(r).tokens for r in runs)
    if budgets[0] == budgets[-1]:
        return []
    names, ends = ", ".join(_with_budget(runs, varied)), {"least": budgets[0], "most": budgets[-1]}
    return [note("effects: budgets", names=names, **ends) if names else note("effects: budgets of some", **ends)]


def _with_budget(runs: Sequence[Run], varied: Sequence[str]) -> list[str]:
    """Settings of which a change alone, all others equal, changes the number of tokens; else those that go with it."""
    found = []
    for key in varied:
        by_rest: dict[tuple[tuple[str, str], ...], set[float]] = {}
        for run in runs:
            rest = tuple(sorted((k, v) for k, v in run.arm.items() if k != key))
            by_rest.setdefault(rest, set()).add(terms_of(run).tokens)
        if any(len(budgets) > 1 for budgets in by_rest.values()):
            found.append(key)
    return found or [
        key for key in varied if len({_mean_budget(runs, key, v) for v in {r.arm.get(key) for r in runs}}) > 1
    ]


def _mean_budget(runs: Sequence[Run], key: str, value: str | None) -> float:
    budgets = [terms_of(r).tokens for r in runs if r.arm.get(key) == value]
    return sum(budgets) / len(budgets)
