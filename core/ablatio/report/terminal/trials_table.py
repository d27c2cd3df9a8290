"""The best trials of a search: cells shared by the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablatio.report.analysis.search import Search
from ablatio.report.escape import terminal
from ablatio.report.words import Language, say

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 5  # trials in the terminal; report.md has LISTED, the page all
LISTED = 10


def trial_cells(search: Search, most: int, language: Language = "en") -> list[tuple[str, ...]]:
    """Head, then one row per trial: its score, its settings, and the mean of its final runs if there are any."""
    finals = any(t.final is not None for t in search.trials)
    head = [search.metric, *(k.name for k in search.knobs), *([say("final_mean", language), "n"] if finals else [])]
    rows = [tuple(head)]
    for trial in [t for t in search.trials if t.score is not None][:most]:
        last = ["" if trial.final is None else f"{trial.final:.4f}", str(trial.runs or "")] if finals else []
        rows.append((f"{trial.score:.4f}", *(trial.arm.get(k.key, "") for k in search.knobs), *last))
    return rows


def show_search(console: Console, search: Search, language: Language = "en") -> None:
    """Print the best trials and what is known about the settings."""
    from rich.table import Table as Grid

    head, *rows = trial_cells(search, SHOWN, language)
    if rows:
        console.print(f"[bold]{say('best trials', language, n=len(search.trials))}[/]", highlight=False)
        grid = Grid(box=None, pad_edge=False)
        words = {k.name for k in search.knobs if k.scale == "words"}
        for name in head:
            grid.add_column(terminal(name), justify="left" if name in words else "right", overflow="fold")
        for row in rows:
            grid.add_row(*map(terminal, row))
        console.print(grid)
    _say(console, search.said(language))


def _say(console: Console, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        console.print(f"  {terminal(sentence)}", highlight=False)
