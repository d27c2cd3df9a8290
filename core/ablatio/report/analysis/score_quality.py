"""Which scores of a study separate its arms: signal-to-noise of each, as a table for all outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablatio.report.analysis.arms import arms_of, higher_is_better
from ablatio.report.analysis.scaling_verdict import families
from ablatio.report.read.run import Run, terms_of
from ablatio.report.read.table import Table
from ablatio.report.statistics.signal_noise import LAST, ScoreQuality, score_quality
from ablatio.report.words import Language, say


def score_qualities(table: Table) -> dict[str, ScoreQuality]:
    """Return the quality of each score that all finished runs have, the best signal over seeds first.

    Of a study over sizes the arms of the largest size count, since sizes differ by more than arms do.  Empty for fewer
    than two arms.
    """
    runs = _at_largest_size(table)
    arms: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        arms.setdefault(tuple(run.arm.items()), []).append(run)
    if len(arms) < 2 or len({terms_of(r) for r in runs}) > 1:
        return {}
    names = set.intersection(*(set(r.scores) for r in runs))
    found = {}
    for name in sorted(names):
        # Reversed: of a seed that is there twice the first run counts, as in `Arm.counted`.
        finals = {str(key): {r.seed: r.scores[name] for r in reversed(of)} for key, of in arms.items()}
        curves = {str(key): [r.curves[name] for r in of if name in r.curves] for key, of in arms.items()}
        # A constant, such as a score that was not computed, separates nothing.
        if len({v for by in finals.values() for v in by.values()}) > 1:
            found[name] = score_quality(finals, curves, higher=higher_is_better(table, name))
    return dict(sorted(found.items(), key=lambda item: -_known(item[1].snr_seed)))


def _at_largest_size(table: Table) -> Sequence[Run]:
    arms = arms_of(table, "")
    grouped = families(arms)
    if not grouped:
        return table.counted
    chosen = [
        max(members, key=lambda a: (a.size("parameters") or 0, a.size("tokens") or 0)) for members in grouped.values()
    ]
    return [r for a in chosen for r in a.runs if r.done and r.role == "run"]


def quality_cells(found: Mapping[str, ScoreQuality]) -> list[tuple[str, ...]]:
    """Rows of the table as text, without its head."""
    return [
        (
            name, _three(q.signal), _three(q.seed_noise), _three(q.snr_seed), _three(q.checkpoint_noise),
            _three(q.snr_checkpoint), _two(q.monotonicity), _two(q.rank_stability), _percent(q.decisions),
        )
        for name, q in found.items()
    ]  # fmt: skip


def quality_caption(language: Language = "en") -> str:
    """Return the explanation of the table's columns, which `heads("signal")` names."""
    return say("signal text", language, last=LAST)


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _three(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _two(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
