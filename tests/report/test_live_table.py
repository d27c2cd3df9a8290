"""Tests of the live table: what the terminal shows while a sweep runs."""

import io
from pathlib import Path

import pytest
from helpers.fakes import engine, job
from rich.console import Console

from ablatio.report.terminal.live_table import LiveTable


@pytest.mark.parametrize("terminal", [True, False])
def test_each_finished_job_is_printed_once_and_table_only_in_terminals(tmp_path: Path, terminal: bool) -> None:
    stream = io.StringIO()
    jobs = [job("a", "nap"), job("b", "raise"), job("c[red]", "nap")]
    with LiveTable(Console(file=stream, force_terminal=terminal, width=100, color_system=None)) as live_table:
        engine(tmp_path, *jobs, watcher=live_table, knobs={"workers": 1}).run()
    output = stream.getvalue()
    ends = [line for line in output.splitlines() if "/3] do=" in line]
    assert len(ends) == 3 and sum("failed (crash): ValueError: no such thing" in line for line in ends) == 1
    assert ("to come" in output) == ("1 starting" in output) == terminal, "the table is drawn in a terminal only"
