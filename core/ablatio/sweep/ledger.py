"""What became of each job: one line of JSON per change, with a checksum, appended under a lock and flushed to the disk.

    {"time": 1763.2, "job": "3f2a", "state": "running", "attempt": 1, "pid": 7, "host": "a", "start": 8, "sha256": ".."}

planned    in the order of the study
claimed    a sweeper has it in hand; should that process die, the job is open again
running    by the process that does it; should it die without a word, the job is open again
done, failed, paused (a rung: at its step), preempted (asked to stop: it goes on from its checkpoint)
replaced   the study has another job in its place, made by other code; what it gave counts no more

Each claim is a new attempt, and what an older attempt says later counts no more.  A last line that is torn or damaged
is left out, and the next append takes it away.  A damaged line further up is left out too; `damaged` has its
number.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ablatio.storage.atomic_write import explained, make_folder

State = Literal["planned", "claimed", "running", "done", "failed", "paused", "preempted", "replaced"]
Kind = Literal["", "user", "diverged", "environment", "crash", "killed", "timeout", "hung", "exited", "lost"]
# What may be tried once more: all failures, those of a kind, or what runs where it cannot be asked.
Retry = Literal[
    "failed", "running", "user", "diverged", "environment", "crash", "killed", "timeout", "hung", "exited", "lost"
]
_SEAL = ', "sha256": "'


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    attempt           the number of the claim, from 1
    pid, host, start  the process: of the sweeper in a claim, else of the run; start tells it from another of its pid
    kind, message     why it failed, or was stopped
    step              where a rung is paused
    """

    job: str
    state: State
    attempt: int = 0
    time: float = 0.0
    pid: int = 0
    host: str = ""
    start: int = 0
    kind: Kind = ""
    message: str = ""
    step: int = 0

    @property
    def taken(self) -> bool:
        """Somebody has it in hand and is alive, as far as can be seen from here."""
        return self.state in ("claimed", "running") and alive(self) is not False

    @property
    def elsewhere(self) -> bool:
        """In the hands of a process that cannot be asked from this machine."""
        return self.state in ("claimed", "running") and alive(self) is None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job: valid until a later line of the ledger than byte `offset` speaks of it."""

    job: str
    attempt: int
    offset: int


class Ledger:
    """The ledger in `path`; reading goes on where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.damaged: list[int] = []
        self._offset = self._lines = 0

    def read(self) -> dict[str, Entry]:
        """The last word on each job, in the order in which they were planned."""
        if self.path.exists():
            with explained("read", self.path), self.path.open("rb") as file:
                self._catch_up(file)
        return self.entries

    def plan(self, jobs: Iterable[str]) -> None:
        """Put down the jobs that it does not know."""
        with self._locked() as file:
            self._append(file, [Entry(job, "planned") for job in jobs if job not in self.entries])

    def replace(self, jobs: Iterable[str]) -> None:
        """Put down that these count no more; one that runs has lost its claim."""
        with self._locked() as file:
            known = [entry for job in jobs if (entry := self.entries.get(job)) and entry.state != "replaced"]
            self._append(file, [Entry(entry.job, "replaced", entry.attempt + 1) for entry in known])

    def claim(self, job: str, known: Entry | None) -> Claim | None:
        """Take a job in hand; None when it is no longer as it was `known`: then somebody else was faster."""
        with self._locked() as file:
            now = self.entries.get(job)
            if now != known:
                return None
            attempt = now.attempt + 1 if now else 1
            offset = self._append(file, [Entry(job, "claimed", attempt, **this_process())])
            return Claim(job, attempt, offset)

    def begin(self, claim: Claim) -> bool:
        """Say that this process does the job now; False when the claim is no longer valid."""
        with self._locked(claim.offset) as file:
            now = self.entries.get(claim.job)  # None: no later line speaks of it
            if now and (now.state, now.attempt) != ("claimed", claim.attempt):
                return False
            self._append(file, [Entry(claim.job, "running", claim.attempt, **this_process())])
            return True

    def end(self, claim: Claim, state: State, kind: Kind = "", message: str = "", step: int = 0) -> None:
        """What became of the attempt."""
        line = Entry(claim.job, state, claim.attempt, **this_process(), kind=kind, message=message, step=step)
        with self._locked(claim.offset) as file:
            self._append(file, [line])

    @contextmanager
    def _locked(self, start: int | None = None) -> Iterator[BinaryIO]:
        """The file, ours alone.  start: nothing before this byte is of interest; a run does not read the whole."""
        if start is not None and self._offset < start:
            self._offset = start
        if not self.path.parent.exists():
            make_folder(self.path.parent)
        with explained("write", self.path), self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = self._catch_up(file)
            size = file.seek(0, os.SEEK_END)
            if end < size:
                file.truncate(end)
            if end and file.seek(end - 1) and file.read(1) != b"\n":  # whole but for its last byte
                file.write(b"\n")
            yield file

    def _append(self, file: BinaryIO, entries: Iterable[Entry]) -> int:
        """The byte at which the ledger ends now."""
        file.write(b"".join(map(_sealed, entries)))
        file.flush()
        os.fsync(file.fileno())
        return self._catch_up(file)

    def _catch_up(self, file: BinaryIO) -> int:
        """Take in what was appended since; the byte at which the last whole line ends."""
        file.seek(self._offset)
        end, bad = self._offset, list[bytes]()
        for line in file:
            entry = _opened(line)
            if entry is None:
                bad.append(line)  # one that is torn if it is the last, else damaged
                continue
            self.damaged += range(self._lines + 1, self._lines + len(bad) + 1)
            end += sum(map(len, bad)) + len(line)
            self._take(entry)
            if not line.endswith(b"\n"):
                break
            self._offset, self._lines, bad = end, self._lines + len(bad) + 1, []
        return end

    def _take(self, entry: Entry) -> None:
        known = self.entries.get(entry.job)
        if known is None or entry.attempt >= known.attempt:
            self.entries[entry.job] = entry


def _sealed(entry: Entry) -> bytes:
    said = {"time": round(time.time(), 3)} | {k: v for k, v in asdict(entry).items() if v not in ("", 0, 0.0)}
    text = json.dumps(said)
    return f'{text[:-1]}{_SEAL}{_digest(text)}"}}\n'.encode()


def _opened(line: bytes) -> Entry | None:
    """What a line says; None when it is not what was written."""
    try:
        text, _, seal = line.decode().rstrip("\n").rpartition(_SEAL)
        if seal != f'{_digest(text + "}")}"}}':
            return None
        data = json.loads(text + "}")
    except ValueError:
        return None
    known = {f.name for f in fields(Entry)}
    return Entry(**{k: v for k, v in data.items() if k in known})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": started(os.getpid())}


def alive(entry: Entry) -> bool | None:
    """Whether its process lives; None where that cannot be seen: on another machine."""
    if entry.host != socket.gethostname():
        return None
    try:
        os.kill(entry.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    return started(entry.pid) == entry.start


def started(pid: int) -> int:
    """When the process began, in the kernel's ticks since boot; 0 where that is unknown, -1 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return -1 if Path("/proc/self/stat").exists() else 0
    state, *rest = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(rest[18])
