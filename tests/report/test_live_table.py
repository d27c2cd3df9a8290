"""What one sees in a terminal while a sweep runs."""

import io
from pathlib import Path

import pytest
from helpers.fakes import engine, job
from rich.console import Console

from ablatio.report.terminal.live_table import LiveTable


@pytest.mark.parametrize("terminal", [True, False])
def test_each_end_is_said_once_and_a_terminal_shows_where_all_are(tmp_path: Path, terminal: bool) -> None:
    seen = io.StringIO()
    jobs = [job("a", "nap"), job("b", "raise"), job("c[red]", "nap")]
    with LiveTable(Console(file=seen, force_terminal=terminal, width=100, color_system=None)) as board:
        engine(tmp_path, *jobs, watcher=board, knobs={"workers": 1}).run()
    said = seen.getvalue()
    ends = [line for line in said.splitlines() if "/3] do=" in line]
    assert len(ends) == 3 and sum("failed (crash): ValueError: no such thing" in line for line in ends) == 1
    assert ("to come" in said) == ("1 starting" in said) == terminal, "the table is drawn in a terminal only"
