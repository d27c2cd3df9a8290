"""Tokenizing in parallel and in shards: the same corpus, also after a kill; dead workers and parents are noticed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatio.data import shards
from ablatio.data.corpus import Corpus, prepare
from ablatio.data.shards import Resources
from ablatio.data.types import Document
from ablatio.data.workers import ordered_map
from ablatio.errors import EnvironmentFault, UserError
from ablatio_std.tokenizers.trained import BPE, Bytes


class Many:
    """600 documents of 300 characters."""

    names_splits = False

    def documents(self) -> Any:
        for i in range(600):
            yield Document(f"{i} the law of a free people, naïve 世界 " * 8, str(i))

    def fingerprint(self) -> str:
        return "many"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of about 7 documents, shards of about 40; workers from the third group on."""
    monkeypatch.setattr(shards, "_GROUP", 2000)
    monkeypatch.setattr(shards, "SHARD", 12_000)
    monkeypatch.setattr(shards, "_ALONE", 2)


def content(corpus: Corpus) -> list[Any]:
    arrays = (corpus.train, corpus.validation, corpus.train_starts, corpus.validation_starts)
    return [*(np.asarray(a).tobytes() for a in arrays), corpus.counts, corpus.key]


def made(cache: Path, workers: int = 1, tokenizer: Any = None) -> Corpus:
    return prepare(Many(), tokenizer or Bytes(), "bytes", cache, 0.1, Resources(workers))


def test_shards_and_workers_give_the_corpus_of_one_process(tmp_path: Path, small: None) -> None:
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(shards, "SHARD", 1 << 24)
        expected = content(made(tmp_path / "whole"))
    for workers in (1, 3):
        assert content(made(tmp_path / str(workers), workers)) == expected
        assert not (tmp_path / str(workers) / "shards").exists() or not list(
            (tmp_path / str(workers) / "shards").iterdir()
        )


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import test_shards
from ablatio.data import shards
shards._GROUP, shards.SHARD, shards._ALONE = 2000, 12_000, 2
real, left = shards.Shard.write, int(sys.argv[2])
def write(self, folder):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, folder)
shards.Shard.write = write
test_shards.made(Path(sys.argv[1]), 2)
"""


@pytest.mark.faults
def test_a_killed_preparation_goes_on_after_its_last_shard(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, cache = content(made(tmp_path / "whole")), tmp_path / "killed"
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, str(cache), "3"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (work,) = (cache / "shards").iterdir()
    assert sorted(p.name for p in work.iterdir() if p.name[0] != ".") == ["000000", "000001", "000002"]
    damaged = work / "000002" / "train.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")  # it is made again
    encoded = []
    real = shards.encode_group
    monkeypatch.setattr(shards, "encode_group", lambda *of: encoded.append(len(of[1])) or real(*of))
    with caplog.at_level("INFO", "ablatio"):
        assert content(made(cache)) == expected
    assert "2 tokenized shard(s) of an interrupted preparation are used" in caplog.text
    assert 400 < sum(encoded) < 560  # of 600 documents
    assert not work.exists()


def test_results_come_in_order_and_errors_are_raised_here() -> None:
    def slow(i: int) -> tuple[int, int]:
        time.sleep(0.02 * (i % 3))
        if i == 50:
            raise UserError("a text that cannot be encoded")
        return i, os.getpid()

    found = list(ordered_map(slow, range(20), 3))
    assert [i for i, _ in found] == list(range(20)) and len({pid for _, pid in found} - {os.getpid()}) == 3
    assert {pid for _, pid in ordered_map(slow, range(3), 1)} == {os.getpid()}
    with pytest.raises(UserError, match="cannot be encoded"):
        list(ordered_map(slow, range(48, 60), 2))


@pytest.mark.faults
def test_a_worker_that_dies_is_reported() -> None:
    def deadly(i: int) -> int:
        if i == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with pytest.raises(EnvironmentFault, match=r"has died \(signal 9"):
        list(ordered_map(deadly, range(10), 2))


@pytest.mark.faults
def test_workers_end_with_their_parent() -> None:
    code = (
        "import os, time\nfrom ablatio.data.workers import ordered_map\n"
        "found = ordered_map(lambda i: os.getpid(), range(9), 3)\n"
        "print(*[next(found) for _ in range(3)], flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
        parent.wait()
        for _ in range(100):
            alive = [pid for pid in workers if Path(f"/proc/{pid}/status").exists() and not _is_dead(pid)]
            if not alive:
                break
            time.sleep(0.05)
        assert not alive


def _is_dead(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_memory_limits_the_number_of_workers() -> None:
    assert Resources(8, memory=1).processes() == 1
    assert Resources(8, memory=shards._BASE + 3 * shards._PER_WORKER).processes() == 3
    assert Resources(2, memory=1 << 20).processes() == 2 and Resources(memory=1 << 20).processes() >= 1


def test_dropout_is_for_training_documents_alone(tmp_path: Path) -> None:
    plain, dropped = BPE(vocab_size=400), BPE(vocab_size=400, dropout=0.5)
    a, b = made(tmp_path, 1, plain), prepare(Many(), dropped, "dropout", tmp_path, 0.1)
    assert a.key != b.key and a.validation.tolist() == b.validation.tolist()
    assert len(b.train) > 1.2 * len(a.train)
    assert dropped.decode(b.train.tolist()) == plain.decode(a.train.tolist())
