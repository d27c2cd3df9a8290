"""`ablatio report --follow`: answer and files, shown and written again until the runs have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.report.analysis.study_cost import counted
from ablatio.report.escape import terminal
from ablatio.report.read.entries import is_at_work
from ablatio.report.read.single_runs import folders_in
from ablatio.report.read.stages import RECIPE
from ablatio.report.terminal import arm_table
from ablatio.report.watch import WatchedReport
from ablatio.report.words import Language, say
from ablatio.storage.paths import shell_word
from ablatio.sweep.study import STUDY

if TYPE_CHECKING:
    from rich.console import Console

    from ablatio.report.analysis.findings import Findings

POLL = 0.5  # seconds between two looks at the folders
LEFT = ("running", "planned", "paused", "preempted")  # states of runs that have not ended


def follow(
    folders: Sequence[Path], load: Callable[[], Findings], write: Callable[[Findings, bool], None], console: Console,
    language: Language = "en",
) -> bool:  # fmt: skip
    """Report on folders until no process works in them; return True if all runs have ended.

    Folders that do not exist or hold no runs yet are waited for.

    load   analyzes the folders
    write  writes the files of the report; its second argument is True while runs go on
    """
    _wait_for_runs(folders, console, language)
    report, shown = None, ""
    while True:
        at_work = any(map(is_at_work, folders))  # asked before the files are read, so that the last word is read
        if report is None:
            report, changed = WatchedReport(folders, load), True
        else:
            changed = report.refresh(wait=at_work)
        if changed or not at_work:
            write(report.findings, at_work)
            counts = _counts(report.findings, language)
            # A terminal is drawn anew; in a log each state of the study appears once.
            if console.is_terminal or counts != shown:
                _show(console, report, counts, at_work, language)
            shown = counts
        if not at_work:
            return _told_end(console, report.findings, folders, language)
        time.sleep(POLL)


def _wait_for_runs(folders: Sequence[Path], console: Console, language: Language) -> None:
    told = False
    while missing := [f for f in folders if not ((f / STUDY).exists() or (f / RECIPE).exists() or folders_in(f))]:
        if not told:
            names = ", ".join(map(str, missing))
            console.print(terminal(say("waiting", language, names=names)), highlight=False, soft_wrap=True)
        told = True
        time.sleep(POLL)


def _counts(findings: Findings, language: Language) -> str:
    """`3 of 8 runs done, 2 running, 3 planned`."""
    states = findings.table.count()
    done = say("runs done", language, done=states.pop("done", 0), n=len(findings.table.runs))
    return say("comma", language).join([done, *counted(states, language)])


def _show(console: Console, report: WatchedReport, counts: str, at_work: bool, language: Language) -> None:
    if console.is_terminal:
        console.clear()
    arm_table.show(console, report.findings, language)
    if report.trouble:
        console.print(terminal(say("not up to date", language, trouble=report.trouble)), highlight=False)
    if at_work:
        told = say("going on now", language, now=time.strftime("%H:%M:%S"), counts=counts)
        console.print(f"\n{told}\n", highlight=False)


def _told_end(console: Console, findings: Findings, folders: Sequence[Path], language: Language) -> bool:
    left = sum(n for state, n in findings.table.count().items() if state in LEFT)
    counts = _counts(findings, language)
    console.print(say("stopped" if left else "ended", language, counts=counts), highlight=False)
    if not left:
        return True
    again = say("try", language, command=f"ablatio resume {shell_word(folders[0])}")
    console.print(f"    {terminal(again)}", highlight=False, soft_wrap=True)
    return False
