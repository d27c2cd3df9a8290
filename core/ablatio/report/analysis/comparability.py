"""Which score arms can be compared by, and which arms cannot be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablatio.errors import UserError
from ablatio.report.analysis.arms import Arm, choose_metric
from ablatio.report.read.table import Table

# Scores that are averages over tokens: another tokenizer makes other tokens of the same text.
PER_TOKEN = ("loss", "accuracy", "error", "perplexity")
PER_BYTE = "bpb"


@dataclass(frozen=True, slots=True)
class Score:
    """The compared score.

    tokenizers  of the arms, if they differ and matter for the score that was wanted
    refused     True if no score is comparable: then `metric` is listed, and nothing is compared
    """

    metric: str
    tokenizers: tuple[str, ...] = ()
    refused: bool = False


def comparable_score(table: Table, asked: str | None) -> Score:
    """Choose the score: `asked`, or the main one; bits per byte instead of a score per token if tokenizers differ.

    Raises UserError if the score that was asked for is counted in different tokens.
    """
    metric = choose_metric(table, asked)
    tokenizers = tuple(dict.fromkeys(run.tokenizer for run in table.counted))
    if len(tokenizers) < 2 or metric.rsplit("/", 1)[-1] not in PER_TOKEN:
        return Score(metric)
    common = [set(run.scores) for run in table.counted]
    per_byte = next((s for s in sorted(set.intersection(*common)) if s.rsplit("/", 1)[-1] == PER_BYTE), None)
    # A score that was asked for by name is never replaced in silence; the default one may be.
    if asked is not None:
        hint = f"--metric {per_byte}" if per_byte else f"ablatio report {table.folders[0]}"
        raise UserError(
            f"{metric} is counted per token, and the arms have different tokenizers: {', '.join(tokenizers)}.  Their "
            f"tokens hold different amounts of text, so their {metric} cannot be compared\n    try: {hint}"
        )
    return Score(per_byte or metric, tokenizers, per_byte is None)


Text = frozenset[tuple[str, str]]
Conditions = tuple[tuple[str, str], ...]


def comparison_classes(arms: Sequence[Arm]) -> dict[str, tuple[Text, Conditions]]:
    """Return arm -> what two arms must have in common to be compared: their text, and the conditions of their runs.

    Text counts where one folder holds several of them, each for whole arms.  Folders that hold one text each are
    compared within each folder, and texts that change with the seed are the same for all arms.
    """
    texts: dict[str, dict[str, set[str]]] = {}
    for arm in arms:
        for run in arm.runs:
            if run.scored_text:
                texts.setdefault(run.group, {}).setdefault(arm.name, set()).add(run.scored_text)
    several = {
        group
        for group, found in texts.items()
        if all(len(of) == 1 for of in found.values()) and len(set.union(*found.values())) > 1
    }
    return {
        arm.name: (
            frozenset((r.group, r.scored_text) for r in arm.runs if r.scored_text and r.group in several),
            tuple(arm.conditions.items()),
        )
        for arm in arms
    }
