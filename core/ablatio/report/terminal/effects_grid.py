"""The table of effects for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatio.report.effects_table import HEAD, caption, effect_rows
from ablatio.report.escape import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from ablatio.report.analysis.study_effects import StudyEffects

SHOWN = 12  # rows; effects.csv holds all


def show_effects(console: Console, found: StudyEffects) -> None:
    """Print the effects, main effects first; columns without content are left out."""
    from rich.table import Table as Grid

    rows = effect_rows(found)
    kept = [i for i in range(len(HEAD)) if any(row.cells[i] for row in rows)]
    grid = Grid(box=None, pad_edge=False)
    for i in kept:
        numbers = HEAD[i] in ("difference", "interval", "p")
        grid.add_column(HEAD[i], justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    for row in rows[:SHOWN]:
        grid.add_row(*(terminal(row.cells[i]) for i in kept))
    console.print(grid)
    if len(rows) > SHOWN:
        console.print(f"... and {len(rows) - SHOWN} effects more in effects.csv", highlight=False)
    console.print(terminal(caption(found)), highlight=False)
