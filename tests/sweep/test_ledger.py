"""Ledger: complete lines survive crashes, damaged lines are reported, and each job is claimed by one process."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.storage.process import started
from ablatio.sweep.ledger import Claim, Entry, Ledger, _sealed, alive


def filled(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.plan(["a", "b", "c"])
    claim = ledger.claim("a", ledger.entries["a"])
    assert claim and ledger.begin(claim)
    ledger.end(claim, "failed", "diverged", 'a "quoted" loss, with\nnewline', step=3)
    return ledger


def test_entries_round_trip(tmp_path: Path) -> None:
    filled(tmp_path / "ledger.jsonl")
    entries = Ledger(tmp_path / "ledger.jsonl").read()
    assert list(entries) == ["a", "b", "c"]
    a = entries["a"]
    assert (a.state, a.attempt, a.kind, a.step) == ("failed", 1, "diverged", 3)
    assert a.message == 'a "quoted" loss, with\nnewline' and a.pid == os.getpid() and a.time > 0
    assert entries["b"] == Entry("b", "planned", time=entries["b"].time)


def test_truncated_last_line_is_repaired(tmp_path: Path) -> None:
    """Simulates SIGKILL at every byte of the last line: earlier lines are kept, and the next append is intact."""
    filled(tmp_path / "whole.jsonl")
    data = (tmp_path / "whole.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    start = len(data) - len(lines[-1])
    for cut in range(start, len(data) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(data[:cut])
        whole = cut >= len(data) - 1  # at most the newline is missing
        ledger = Ledger(path)
        assert ledger.read()["a"].state == ("failed" if whole else "running"), cut
        assert not ledger.damaged
        ledger.end(Claim("b", 1, 0), "done")
        again = Ledger(path)
        assert again.read()["b"].state == "done" and again.read()["a"].state == ledger.entries["a"].state
        assert not again.damaged and path.read_bytes().startswith(data[: start if not whole else len(data)])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 499), st.integers(1, 255))
def test_flipped_byte_damages_only_its_line(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    filled(path)
    content = bytearray(path.read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    assert len(content) - len(lines[-1]) > 499
    content[at] ^= flip
    path.write_bytes(content)
    ledger = Ledger(path)
    assert ledger.read()["a"].state == "failed"
    number = bytes(content[:at]).count(b"\n") + 1
    assert number in ledger.damaged or bytes(content).count(b"\n") != len(lines)  # the flip made or removed a newline
    assert ledger.damaged


def test_concurrent_claims_succeed_only_once(tmp_path: Path) -> None:
    filled(tmp_path / "ledger.jsonl")
    claims: list[Claim | None] = []

    def take() -> None:
        ledger = Ledger(tmp_path / "ledger.jsonl")
        known = ledger.read()["b"]
        barrier.wait()
        claims.append(ledger.claim("b", known))

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([c for c in claims if c]) == 1


def test_superseded_claim_can_neither_begin_nor_end(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl")
    old = ledger.claim("b", ledger.entries["b"])
    new = ledger.claim("b", ledger.entries["b"])
    assert old and new and new.attempt == 2
    assert not Ledger(tmp_path / "ledger.jsonl").begin(old)
    assert Ledger(tmp_path / "ledger.jsonl").begin(new)
    ledger.end(old, "failed", "killed")
    assert Ledger(tmp_path / "ledger.jsonl").read()["b"].state == "running"


def test_late_record_of_an_older_attempt_does_not_take_the_claim_of_a_new_one(tmp_path: Path) -> None:
    """A sweeper records that a run died while another sweeper, which saw it dead, has already claimed it again."""
    path = tmp_path / "ledger.jsonl"
    ledger = filled(path)
    old = ledger.claim("b", ledger.entries["b"])
    assert old and Ledger(path).begin(old)
    new = ledger.claim("b", Ledger(path).read()["b"])
    assert new and new.attempt == 2
    size = path.stat().st_size
    ledger.end(old, "preempted", "killed")
    assert path.stat().st_size == size
    with path.open("ab") as file:  # as versions before this one wrote it
        file.write(_sealed(Entry("b", "preempted", old.attempt)))
    assert Ledger(path).begin(new) and Ledger(path).read()["b"].attempt == 2


def test_process_is_identified_by_pid_and_start_time(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    entry = Entry("a", "running", 1, pid=child.pid, host=os.uname().nodename, start=started(child.pid))
    assert alive(entry) and entry.taken
    child.kill()
    child.wait()
    assert alive(entry) is False and not entry.taken
    other = Entry("a", "running", 1, pid=os.getpid(), host=os.uname().nodename, start=entry.start - 1)
    assert alive(other) is False
    far = Entry("a", "running", 1, pid=1, host="another machine", start=1)
    assert alive(far) is None and far.taken and far.elsewhere
