"""Start runs on several ranks, as a user does, and find their processes."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from helpers import warm_python
from helpers.as_own_process import leave_pytest
from helpers.runs import begin

import ablatio
from ablatio.training.gang import store_of_supervisor
from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place

TINY = (
    "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_len=32", "train.steps=5",
    "train.batch_size=8", "tokenizer=bytes", "data.val_tokens=256", "train.log_every=1", "trainer.progress=false",
    "trainer.device=cpu", "trainer.threads=1",
)  # fmt: skip
TWO = ("strategy=ddp", "trainer.devices=2")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ablatio", "train", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finished(*words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """A run to its end, which may be late where other processes have the cores."""
    return warm_python.run(["-m", "ablatio", "train", *words], timeout=timeout, env=environment())


def in_one_gang(log: Path, runs: Sequence[tuple[str, Sequence[str]]], ranks: int) -> None:
    """Train or resume runs, (name, words) each, one after the other in one process per rank.

    The processes are forked, so that torch is imported once; their output goes to `log`.0, `log`.1 ...
    """
    import ablatio.training.run  # noqa: F401  (imported before the fork)

    with store_of_supervisor(1) as (address, port, _):
        places = [Place(rank, ranks, rank, ranks, address, port) for rank in range(ranks)]
        files = [log.with_name(f"{log.name}.{place.rank}") for place in places]
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(target=_rank, args=(runs, place, file)) for place, file in zip(places, files, strict=True)
        ]
        for process in processes:
            process.start()
        for process, file in zip(processes, files, strict=True):
            process.join(560)
            process.kill()
            assert process.exitcode == 0, file.read_text()[-3000:]


def _rank(runs: Sequence[tuple[str, Sequence[str]]], place: Place, log: Path) -> None:
    """Train `runs` as one rank, or as a process of its own if it is the only one."""
    leave_pytest()
    os.environ |= {"OMP_NUM_THREADS": "1", STORE_OF_SUPERVISOR: "1"}
    if place.world > 1:
        os.environ |= place.to_environment()
    with log.open("w", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
        code = 1
        try:
            for _, words in runs:
                if words[0].startswith("resume="):
                    ablatio.resume_run(words[0].removeprefix("resume="), *words[1:], quiet=True)
                else:
                    ablatio.train(*words, quiet=True)
            code = 0
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == pid and rest[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Running:
    """A run of many steps that has begun, or has ended before its third step; `pids` are those of its ranks."""

    def __init__(self, folder: Path, *words: str, strategy: str = "ddp") -> None:
        self.log = folder.parent / f"{folder.name}.log"
        usual = (*TINY, f"strategy={strategy}", "trainer.devices=2", "train.steps=100000")
        with patch.dict(os.environ, environment()):
            self.process = begin(["train", *usual, f"out={folder.parent}", f"name={folder.name}", *words], self.log)
        assert self.process.pid
        self.pid, self.pids = self.process.pid, list[int]()
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.is_alive() and last_step(folder) < 3:
            time.sleep(0.05)
            self.pids = sorted({*self.pids, *children(self.pid)})

    def signal(self, number: int) -> None:
        """Send a signal to the command, which watches the ranks."""
        os.kill(self.pid, number)

    def ended(self, within: float = 30) -> tuple[int, str]:
        """Exit code and output; every rank must be gone."""
        self.process.join(within)
        alive = self.process.is_alive()
        self.process.kill()
        output = (self.log / "out").read_text() + (self.log / "err").read_text()
        assert not alive, f"the command did not end within {within:g} s\n{output}"
        end = time.monotonic() + 5
        while (left := [pid for pid in self.pids if _lives(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"ranks {left} are left"
        return self.process.exitcode or 0, output


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.csv without times."""
    file = folder / "metrics.csv"
    if not file.exists():
        return []
    with file.open() as lines:
        return [
            {name: float(text) for name, text in row.items() if text and not name.startswith(("tokens_per", "seconds"))}
            for row in csv.DictReader(lines)
            if None not in row.values()
        ]


def last_step(folder: Path) -> float:
    return max((row["step"] for row in rows(folder)), default=0)
