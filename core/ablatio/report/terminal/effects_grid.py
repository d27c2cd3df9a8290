"""The table of effects for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatio.report.effects_table import effect_rows, effects_caption
from ablatio.report.escape import terminal
from ablatio.report.words import Language, heads, say

if TYPE_CHECKING:
    from rich.console import Console

    from ablatio.report.analysis.study_effects import StudyEffects

SHOWN = 12  # rows; effects.csv holds all
NUMBERS = (2, 3, 4)  # columns: difference, interval, p


def show_effects(console: Console, found: StudyEffects, language: Language = "en") -> None:
    """Print the effects, main effects first; columns without content are left out."""
    from rich.table import Table as Grid

    rows, head = effect_rows(found, language=language), heads("effect", language)
    kept = [i for i in range(len(head)) if any(row.cells[i] for row in rows)]
    grid = Grid(box=None, pad_edge=False)
    for i in kept:
        number = i in NUMBERS
        grid.add_column(head[i], justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows[:SHOWN]:
        grid.add_row(*(terminal(row.cells[i]) for i in kept))
    console.print(grid)
    if len(rows) > SHOWN:
        console.print(say("more effects", language, k=len(rows) - SHOWN), highlight=False)
    console.print(terminal(effects_caption(found, language)), highlight=False)
