"""Types of a verdict: facts about arms, the sentence on a pair, and the verdict itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ablatio.report.statistics import Pair
from ablatio.report.words import LANGUAGES, Language

__all__ = ["LANGUAGES", "ArmFacts", "Kind", "Language", "Sentence", "Verdict"]

Kind = Literal["resolved", "not resolved", "equal", "not testable"]


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """Facts about an arm beside its score; None or missing: unknown, and not mentioned.

    tuned    True if the learning rate was tuned for this arm
    budgets  what the arm was given, beside its parameters: see `budgets.BUDGETS`
    edges    settings that were tuned to the end of what was tried: {"optimizer.lr=0.012": "largest"}
    """

    parameters: float | None = None
    tuned: bool | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)
    edges: Mapping[str, str] = field(default_factory=dict)

    @property
    def given(self) -> Mapping[str, float]:
        """Budgets and size."""
        return {**self.budgets, **({"parameters": self.parameters} if self.parameters else {})}


@dataclass(frozen=True, slots=True)
class Sentence:
    """The sentence on one pair.

    fair  True for a resolved difference between arms of equal size and budget of which none diverged.  Wall time is
          named but does not count: it is measured, and depends on what else the machine did
    asked  True if somebody asked for this comparison by naming the baseline
    """

    text: str
    kind: Kind
    pair: Pair
    fair: bool
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusions of a study.

    headline   the answer; begins with divergence if an arm diverged
    sentences  on pairs, largest resolved difference first
    notes      on all of them
    outcomes   sentences on divergence, one per arm that diverged
    effects    sentences on settings that vary together; answer: of the arms, which comes after them
    lost       what the headline begins with if arms diverged
    """

    headline: str
    sentences: tuple[Sentence, ...]
    notes: tuple[str, ...]
    outcomes: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    answer: str = ""
    lost: str = ""
