"""Sweeps whose run, server or main process is killed, and concurrent sweeps: each job is done exactly once."""

import json
import multiprocessing as mp
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import engine, job, table
from helpers.runs import TINY, ablatio, begin

from ablatio.errors import UserError
from ablatio.sweep.ledger import Ledger, alive

pytestmark = [pytest.mark.faults, pytest.mark.slow]

JOBS = 4
SETTINGS = (
    *TINY, "train.steps=120", "train.val_every=null", "train.checkpoint_every=20", "norm=layernorm,rmsnorm", "seed=1,2",
    "workers=2", "table=0", "name=study",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"The people of {n} nations want peace and {n * n} kinds of work." for n in range(300)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[float, bytes]:
    """(seconds from the first run's start to the last one's end, content of results.csv) of an undisturbed sweep."""
    out = tmp_path_factory.mktemp("whole")
    ended = ablatio(command(text, out), out / "log")
    assert ended.code == 0, ended.err
    times = [line["time"] for line in lines(out / "study") if line["state"] != "planned"]
    return max(times) - min(times), results(out)


def command(text: Path, out: Path) -> list[str]:
    return ["train", "-m", *SETTINGS, f"source.path={text}", f"out={out}"]


def results(out: Path) -> bytes:
    reported = ablatio(["report", str(out / "study")], out / "log")
    assert reported.code == 0, reported.err
    return next((out / "study").rglob("results.csv")).read_bytes()


def lines(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "ledger.jsonl").read_text().splitlines()]


def done(study: Path) -> Counter[str]:
    """Count how often the ledger records each job as done; every line must be complete."""
    ledger = Ledger(study / "ledger.jsonl")
    ledger.read()
    assert not ledger.damaged
    return Counter(line["job"] for line in lines(study) if line["state"] == "done")


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def victims(who: str, sweeper: int) -> list[int]:
    servers = children(sweeper)
    runs = [run for server in servers for run in children(server)]
    return {"sweeper": [sweeper], "server": servers, "run": runs}[who]


def kill(who: str, sweeper: mp.process.BaseProcess, wait: float) -> int:
    """Kill one process `wait` seconds after a run appeared, or as soon as there is one; 0 if the sweep had ended."""
    assert sweeper.pid
    while sweeper.is_alive() and not victims("run", sweeper.pid):
        sweeper.join(0.005)
    sweeper.join(wait)
    while sweeper.is_alive():
        if found := victims(who, sweeper.pid):
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGKILL)
                return found[0]
        sweeper.join(0.005)
    return 0


@pytest.mark.matrix
@pytest.mark.parametrize("who", ["run", "server", "sweeper"])
def test_kills_do_not_change_the_results(tmp_path: Path, text: Path, whole: tuple[float, bytes], who: str) -> None:
    """Two kills at random times, then the same command until all jobs are done."""
    seconds, expected = whole
    killed = 0
    for attempt in range(2 if who == "sweeper" else 1):
        sweeper = begin(command(text, tmp_path), tmp_path / f"log{attempt}")
        for _ in range(1 if who == "sweeper" else 2):
            killed += kill(who, sweeper, random.uniform(0, 0.45) * seconds) > 0
        sweeper.join(60)
        assert sweeper.exitcode == (-signal.SIGKILL if who == "sweeper" and killed == attempt + 1 else 0)
    assert killed
    ended = ablatio(command(text, tmp_path), tmp_path / "log")
    assert ended.code == 0, ended.err
    times = done(tmp_path / "study")
    assert len(times) == JOBS and set(times.values()) == {1}, times
    assert results(tmp_path) == expected


NAPS = [job(f"j{i}", "nap") for i in range(4)]


def concurrent_sweeps(folder: Path, join: bool) -> Iterator[tuple[int, str]]:
    """Run two sweeps of the same jobs at once; yields (pid, error text if rejected, else "") of each."""
    context = mp.get_context("fork")
    start = context.Barrier(2)

    def sweep() -> None:
        message_file = folder / f"error-{os.getpid()}"
        made = engine(folder / "study", *NAPS, join=join)
        start.wait()
        try:
            made.run()
        except UserError as error:
            message_file.write_text(str(error))

    folder.mkdir()
    pair = [context.Process(target=sweep) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        assert process.exitcode == 0 and process.pid
        message_file = folder / f"error-{process.pid}"
        yield process.pid, message_file.read_text() if message_file.exists() else ""


@pytest.mark.matrix(share=4)
@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("join", [False, True])
def test_concurrent_sweeps_do_not_interfere(tmp_path: Path, join: bool, attempt: int) -> None:
    engine(tmp_path / "alone", *NAPS).run()
    refused = 0
    for number in range(5):
        folder = tmp_path / str(number)
        pair = list(concurrent_sweeps(folder, join))
        for (_, error_text), (other, _) in (pair, reversed(pair)):
            refused += bool(error_text)
            assert not error_text or f"process {other} on" in error_text
        assert not all(error_text for _, error_text in pair)
        assert done(folder / "study") == Counter(j.id for j in NAPS)
        assert table(folder / "study") == table(tmp_path / "alone")
        for log in (folder / "study").glob("runs/*/log.txt"):
            assert log.read_text().count("starts at step 0") == 1
        assert not any(alive(e) and e.taken for e in Ledger(folder / "study/ledger.jsonl").read().values())
    assert refused == (0 if join else 5)
