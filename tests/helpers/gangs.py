"""Start runs on several ranks, as a user does, and find their processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from helpers.runs import begin

from ablatio.training.gang import store_of_supervisor
from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place

SCRIPT = Path(__file__).with_name("ranks_script.py")
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
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, env=environment())


def in_one_gang(file: Path, runs: Sequence[tuple[str, Sequence[str]]], ranks: int) -> None:
    """Train or resume runs, (name, words) each, one after the other in one process per rank; they go through a file."""
    file.write_text(json.dumps(runs))
    with store_of_supervisor(1) as (address, port, _):
        places = [Place(rank, ranks, rank, ranks, address, port) for rank in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(file)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**environment(), STORE_OF_SUPERVISOR: "1", **(place.to_environment() if ranks > 1 else {})},
            )
            for place in places
        ]  # fmt: skip
        for process in processes:
            output = process.communicate(timeout=560)[0]
            assert process.returncode == 0, output[-3000:]


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
