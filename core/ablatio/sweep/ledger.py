"""The ledger: one line of JSON per state change, with a checksum, appended under a lock and flushed to disk.

    {"time": 1763.2, "job": "3f2a", "state": "running", "attempt": 1, "pid": 7, "host": "a", "start": 8, "sha256": ".."}

planned    listed in the order of the study
claimed    held by a sweeper; if that process dies, the job is open again
running    in the process that executes it; if it dies without a record, the job is open again
done, failed, paused (a rung, at its step), preempted (asked to stop; continues from its checkpoint)
replaced   superseded by another job because the code has changed; its result no longer counts

Each claim is a new attempt; records of older attempts no longer count.  A torn or damaged last line is ignored, and
the next append removes it.  A damaged line further up is ignored too; `damaged` lists its number.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, Literal

from ablatio.storage.atomic_write import explained, make_folder
from ablatio.storage.process import is_alive, this_process
from ablatio.storage.secrets import redact

State = Literal["planned", "claimed", "running", "done", "failed", "paused", "preempted", "replaced"]
Kind = Literal["", "user", "diverged", "environment", "crash", "killed", "timeout", "hung", "exited", "lost"]
# What may be repeated: all failures, those of one kind, or runs on machines that cannot be queried.
Retry = Literal[
    "failed", "running", "user", "diverged", "environment", "crash", "killed", "timeout", "hung", "exited", "lost"
]
RESULTS = ("config.json", "manifest.json", "metrics.csv", "summary.json")  # files that reports read
_SEAL = ', "sha256": "'


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    attempt           number of the claim, from 1
    pid, host, start  process of the sweeper (claimed) or of the run; start distinguishes reused pids
    kind, message     why it failed or was stopped
    step              step at which a rung is paused
    files             digests of the result files when the run ended: `summary.json=1a2b... metrics.csv=3c4d...`
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
    files: str = ""

    @property
    def taken(self) -> bool:
        """True if a process that is alive, as far as can be seen from here, holds the job."""
        return self.state in ("claimed", "running") and alive(self) is not False

    @property
    def elsewhere(self) -> bool:
        """True if a process that cannot be queried from this machine holds the job."""
        return self.state in ("claimed", "running") and alive(self) is None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job: valid until a line after byte `offset` shows that this or a later attempt has begun."""

    job: str
    attempt: int
    offset: int


class Ledger:
    """The ledger in `path`; each read continues where the last one ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.damaged: list[int] = []
        self._offset = self._lines = 0

    def read(self) -> dict[str, Entry]:
        """Return the last entry of each job, in the order in which they were planned."""
        if self.path.exists():
            with explained("read", self.path), self.path.open("rb") as file:
                self._catch_up(file)
        return self.entries

    def plan(self, jobs: Iterable[str]) -> None:
        """Add the jobs that are not listed yet."""
        with self._locked() as file:
            self._append(file, [Entry(job, "planned") for job in jobs if job not in self.entries])

    def replace(self, jobs: Iterable[str]) -> None:
        """Mark jobs as replaced; one that is running loses its claim."""
        with self._locked() as file:
            known = [entry for job in jobs if (entry := self.entries.get(job)) and entry.state != "replaced"]
            self._append(file, [Entry(entry.job, "replaced", entry.attempt + 1) for entry in known])

    def claim(self, job: str, known: Entry | None) -> Claim | None:
        """Claim a job; None if its state is no longer `known` because another process was faster."""
        with self._locked() as file:
            now = self.entries.get(job)
            if now != known:
                return None
            attempt = now.attempt + 1 if now else 1
            offset = self._append(file, [Entry(job, "claimed", attempt, **this_process())])
            return Claim(job, attempt, offset)

    def begin(self, claim: Claim) -> bool:
        """Record that this process runs the job; False if the claim is no longer valid."""
        with self._locked(claim.offset) as file:
            now = self.entries.get(claim.job)  # None: no later line mentions the job
            if now and now.attempt >= claim.attempt and (now.state, now.attempt) != ("claimed", claim.attempt):
                return False
            self._append(file, [Entry(claim.job, "running", claim.attempt, **this_process())])
            return True

    def end(
        self, claim: Claim, state: State, kind: Kind = "", message: str = "", step: int = 0, files: str = ""
    ) -> None:
        """Record the outcome of an attempt, unless a later attempt has begun."""
        line = Entry(
            claim.job, state, claim.attempt, **this_process(), kind=kind, message=message, step=step, files=files
        )
        with self._locked(claim.offset) as file:
            now = self.entries.get(claim.job)
            if now is None or now.attempt <= claim.attempt:
                self._append(file, [line])

    @contextmanager
    def _locked(self, start: int | None = None) -> Iterator[BinaryIO]:
        """Lock the file.  start: skip everything before this byte, so that a run need not read the whole ledger."""
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
            if end and file.seek(end - 1) and file.read(1) != b"\n":  # complete except for its newline
                file.write(b"\n")
            yield file

    def _append(self, file: BinaryIO, entries: Iterable[Entry]) -> int:
        """Append entries and return the new end of the ledger."""
        file.write(b"".join(map(_sealed, entries)))
        file.flush()
        os.fsync(file.fileno())
        return self._catch_up(file)

    def _catch_up(self, file: BinaryIO) -> int:
        """Read what was appended since; return the byte at which the last whole line ends."""
        file.seek(self._offset)
        end, bad = self._offset, list[bytes]()
        for line in file:
            entry = _opened(line)
            if entry is None:
                bad.append(line)  # torn if it is the last line, else damaged
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


def digests_of(run: Path) -> str:
    """Digests of the result files in a run folder, for `Entry.files`."""
    found = [path for name in RESULTS if (path := run / name).is_file()]
    return " ".join(f"{path.name}={hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for path in found)


def digests_in(files: str) -> dict[str, str]:
    """Parse `Entry.files` into {file name: digest}."""
    return dict(word.split("=", 1) for word in files.split() if "=" in word)


def _sealed(entry: Entry) -> bytes:
    said = {"time": round(time.time(), 3)} | {
        k: redact(v) if k == "message" else v for k, v in asdict(entry).items() if v not in ("", 0, 0.0)
    }
    text = json.dumps(said)
    return f'{text[:-1]}{_SEAL}{_digest(text)}"}}\n'.encode()


def _opened(line: bytes) -> Entry | None:
    """Parse a line; None unless its checksum is right."""
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


def alive(entry: Entry) -> bool | None:
    """True if the entry's process is alive; None if it is on another machine."""
    return is_alive(entry.pid, entry.host, entry.start)
