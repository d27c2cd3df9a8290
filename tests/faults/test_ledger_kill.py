"""SIGKILL at any byte of a ledger line, in any writer: each job is done exactly once."""

import os
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from helpers.fakes import fake_work, job, states, table

from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest
from ablatio.sweep import ledger as ledgers
from ablatio.sweep.engine import Engine
from ablatio.sweep.ledger import Entry, Ledger

pytestmark = [pytest.mark.faults, pytest.mark.slow]

OFFSETS = 200  # of all states together
PARTS = 4  # tests that share the offsets of a state
STATES = ("planned", "claimed", "running", "done")
JOBS = [job("a"), job("b")]


class Forks:
    """A launcher without a server: one process per run, in sequence."""

    slots = 1

    def start(self) -> None:
        self.ends: list[LaunchOutcome] = []

    def submit(self, order: LaunchRequest) -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = fake_work(order, 1)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.ends.append(LaunchOutcome(order, "signal" if code < 0 else "exit", abs(code)))

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        ends, self.ends = getattr(self, "ends", []), []
        return ends

    def cancel(self, job: str) -> None: ...

    def stop(self) -> None: ...


def sweep(folder: Path) -> Engine:
    made = Engine(folder, JOBS, Forks())
    made.run()
    return made


def sweep_killed_at(folder: Path, word: str, share: float) -> None:
    """Run a sweep in which SIGKILL truncates the first line containing `word` after this fraction of its bytes."""
    whole = Ledger._append

    def append(self: Ledger, file: BinaryIO, entries: Iterable[Entry]) -> int:
        written = list(entries)
        if any(entry.state == word for entry in written) and not (folder / "killed").exists():
            (folder / "killed").touch()
            line = b"".join(map(ledgers._sealed, written))
            file.write(line[: int(len(line) * share)])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, file, written)

    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        Ledger._append = append  # type: ignore[method-assign]
        try:
            sweep(folder)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # Runs write "running" and "done"; the other lines are written by the sweep's own process, which is then killed.
    assert code == (0 if word in ("running", "done") else -signal.SIGKILL)
    assert (folder / "killed").exists()


@pytest.mark.matrix
@pytest.mark.parametrize("word", STATES)
@pytest.mark.parametrize("part", range(PARTS))
def test_truncated_ledger_line_loses_or_repeats_no_job(
    tmp_path: Path, word: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # fsync matters only when the machine fails
    sweep(tmp_path / "whole")
    expected: dict[str, Any] = table(tmp_path / "whole")
    for offset in range(part, OFFSETS // len(STATES), PARTS):
        folder = tmp_path / str(offset)
        sweep_killed_at(folder, word, (offset + 0.5) * len(STATES) / OFFSETS)
        made = sweep(folder)
        assert set(states(made).values()) == {"done"} and not made.ledger.damaged
        lines = (folder / "ledger.jsonl").read_text().splitlines()
        assert Counter(line.split('"job": "')[1][0] for line in lines if '"done"' in line) == {"a": 1, "b": 1}
        assert table(folder) == expected
        for name in ("a", "b"):
            files = [at / "runs" / name / "summary.json" for at in (folder, tmp_path / "whole")]
            assert files[0].read_bytes() == files[1].read_bytes()
