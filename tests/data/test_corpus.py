"""The token cache: correct, shared between processes, and never used when damaged."""

import errno
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatio.data import cache_store
from ablatio.data.corpus import SPLITS, Corpus, prepare
from ablatio.data.types import Document
from ablatio.errors import EnvironmentFault, UserError
from ablatio_std.sources import StateOfTheUnion
from ablatio_std.tokenizers.trained import BPE, Bytes

FILES = ["train.bin", "validation.bin", "train.documents", "validation.documents", "meta.json"]


def make(source: Any, cache: Path, tokenizer: Any = None, fraction: float = 0.2) -> Corpus:
    tokenizer = tokenizer or Bytes()
    return prepare(source, tokenizer, type(tokenizer).__name__, cache, fraction)


def content(corpus: Corpus) -> tuple[Any, ...]:
    streams = (corpus.train, corpus.validation, corpus.train_starts, corpus.validation_starts)
    return *(array.tolist() for array in streams), corpus.counts, corpus.key


def hidden(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob(".*") if not p.name.endswith(".lock")]


def test_stream_is_eos_and_tokens_of_each_document(corpus: Corpus, toy: Any) -> None:
    for split in SPLITS:
        stream, starts = getattr(corpus, split), getattr(corpus, f"{split}_starts")
        assert stream.dtype == np.uint16 and isinstance(stream, np.memmap) and not stream.flags.writeable
        assert (stream[starts] == corpus.eos).all() and (stream == corpus.eos).sum() == len(starts)
        texts = [corpus.tokenizer.decode(part.tolist()) for part in np.split(stream, starts[1:])]
        assert set(texts) <= {document.text for document in toy().given}
        size = sum(len(text.encode()) for text in texts)
        words = sum(len(text.split()) for text in texts)
        expected = {"documents": len(texts), "tokens": len(stream), "bytes": size, "words": words}
        assert corpus.counts[split] == expected
    assert sum(corpus.counts[split]["documents"] for split in SPLITS) == 40


def test_second_run_reads_no_text_and_restores_the_tokenizer(toy: Any, tmp_path: Path) -> None:
    source, first, second = toy(), BPE(vocab_size=300), BPE(vocab_size=300)
    one = make(source, tmp_path, first)
    reads = source.reads
    two = make(source, tmp_path, second)
    assert content(one) == content(two) and source.reads == reads > 0
    assert first.state() == second.state()


def test_tokenizer_is_trained_on_training_documents_only(toy: Any, tmp_path: Path) -> None:
    held_out = Document("zqx " * 500, "held out", "validation")
    tokenizer = BPE(vocab_size=400)
    make(toy([held_out, *(Document(d.text, d.id, "train") for d in toy().given)]), tmp_path, tokenizer)
    assert "zq" not in tokenizer.state()


def test_cache_key_covers_everything_that_changes_the_tokens(toy: Any, tmp_path: Path) -> None:
    keys = [
        make(toy(), tmp_path).key,
        make(toy(), tmp_path, fraction=0.3).key,
        make(toy(toy().given[:-1]), tmp_path).key,
        make(toy(), tmp_path, BPE(vocab_size=300)).key,
        make(toy(), tmp_path, BPE(vocab_size=301)).key,
    ]
    assert len(set(keys)) == len(keys)
    assert len(list((tmp_path / "tokens").glob("[!.]*"))) == len(keys)


def test_group_size_does_not_change_the_stream(corpus: Corpus, toy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ablatio.data.shards._GROUP", 500)
    assert content(make(toy(), tmp_path / "other")) == content(corpus)


def test_ids_beyond_16_bits_are_stored(toy: Any, tmp_path: Path) -> None:
    class Wide(Bytes):
        vocab_size, eos = 100_000, 99_999

    corpus = make(toy(), tmp_path, Wide())
    assert corpus.train.dtype == np.uint32 and corpus.train[0] == 99_999


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "flip first", "flip middle", "flip last", "longer"])
def test_damaged_file_is_rebuilt(
    corpus: Corpus, toy: Any, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, cache = content(corpus), corpus.folder.parents[1]
    harm(corpus.folder / name, damage)
    with caplog.at_level(logging.WARNING, "ablatio"):
        assert content(make(toy(), cache)) == expected
        assert content(make(toy(), cache)) == expected
    (record,) = caplog.records
    assert name in record.message and "The entry is rebuilt." in record.message and "\n" not in record.message
    assert not hidden(cache)


@pytest.mark.faults
def test_damaged_tokenizer_is_retrained(toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = content(make(toy(), tmp_path, BPE(vocab_size=300)))
    (meta,) = (tmp_path / "tokenizers").glob("*/meta.json")
    harm(meta, "flip middle")
    with caplog.at_level(logging.WARNING, "ablatio"):
        assert content(make(toy(), tmp_path, BPE(vocab_size=300))) == expected
    assert len(caplog.records) == 1


@pytest.mark.faults
def test_entry_of_another_corpus_is_rejected(corpus: Corpus, toy: Any, tmp_path: Path) -> None:
    cache, other = corpus.folder.parents[1], make(toy(toy().given[5:]), tmp_path / "other")
    expected = content(corpus)
    shutil.rmtree(corpus.folder)
    shutil.copytree(other.folder, corpus.folder)
    assert content(make(toy(), cache)) == expected
    (corpus.folder / "meta.json").write_bytes(b'{"format": 1}')
    assert content(make(toy(), cache)) == expected


def harm(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    where = {"flip first": 0, "flip middle": len(data) // 2, "flip last": -1}
    if damage == "missing":
        path.unlink()
        return
    if damage in where:
        data[where[damage]] ^= 1
    elif damage == "longer":
        data += b"\0"
    else:
        data = data[: len(data) // 2 if damage == "half" else 0]
    path.write_bytes(data)


class Deadly:
    """Kills the process with SIGKILL at the n-th call that changes the disk, or at the n-th document."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Any, at: int) -> None:
        self.left, self.source = at, source
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self.counting(getattr(owner, name)))

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return function(*args, **kwargs)

        return call

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def documents(self) -> Iterator[Document]:
        for document in self.source.documents():
            if document.id in ("0", "39"):
                self.tick()
            yield document

    def fingerprint(self) -> str:
        return str(self.source.fingerprint())


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked child and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.faults
@pytest.mark.parametrize("start", ["nothing", "damaged"])
def test_kill_at_any_point_leaves_a_correct_cache(
    corpus: Corpus, toy: Any, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, killed = content(corpus), 0
    for at in range(1, 100):
        cache = tmp_path / str(at)
        if start == "damaged":
            shutil.copytree(corpus.folder.parents[1], cache)
            harm(cache / "tokens" / corpus.key / "train.bin", "flip middle")

        def build(at: int = at, cache: Path = cache) -> None:
            make(Deadly(monkeypatch, toy(), at), cache)

        status = in_child(build)
        assert content(make(toy(), cache)) == expected
        assert not hidden(cache)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        killed += 1
    assert 20 < killed < 99


@pytest.mark.faults
def test_four_concurrent_processes_build_once(toy: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"

    class Slow:
        def documents(self) -> Iterator[Document]:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.02)
            yield from toy().given

        def fingerprint(self) -> str:
            return str(toy().fingerprint())

    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                result = content(make(Slow(), tmp_path / "cache"))
                (tmp_path / str(number)).write_bytes(pickle.dumps(result))
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(set(log.read_text().split())) == 1
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1


@pytest.mark.faults
def test_first_finished_build_wins_without_locks(corpus: Corpus, toy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(cache_store.fcntl, "flock", refuse)

    def build(temp: Path) -> dict[str, int]:
        if not (tmp_path / "entry").exists():
            cache_store.get_or_build(
                tmp_path / "entry", lambda temp: {"winner": 1}
            )  # a rival, in the middle of our build
        return {"winner": 2}

    assert cache_store.get_or_build(tmp_path / "entry", build) == {"winner": 1}
    assert not hidden(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_full_disk_is_reported_and_leaves_no_files(
    corpus: Corpus, toy: Any, tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match="ABLATIO_CACHE=FOLDER") as caught:
            make(toy(), tmp_path / "new")
    assert caught.value.exit_code == 5 and calls > 4
    assert not hidden(tmp_path / "new") and not list((tmp_path / "new" / "tokens").glob("[!.]*"))
    assert content(make(toy(), tmp_path / "new")) == content(corpus)


@pytest.mark.faults
def test_read_only_cache_can_be_read_but_not_extended(corpus: Corpus, toy: Any, unprivileged: Any) -> None:
    cache = corpus.folder.parents[1]
    for folder in (cache, *cache.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    with unprivileged():
        assert content(make(toy(), cache)) == content(corpus)
        with pytest.raises(EnvironmentFault, match="permission denied"):
            make(toy(), cache, fraction=0.4)


@pytest.mark.parametrize(
    ("attribute", "value", "match"),
    [
        ("encode", lambda texts: [np.array([300])] * len(texts), r"ids from 256 to 300, expected 0 to 256"),
        ("encode", lambda texts: [np.array([-1])] * len(texts), r"ids from -1"),
        ("encode", lambda texts: [np.array([1.5])] * len(texts), r"float64, expected integers"),
        ("encode", lambda texts: [np.array([256])] * len(texts), r"encodes to eos \(256\)"),
        ("encode", lambda texts: [], r"0 results for"),
    ],
)
def test_faulty_tokenizer_is_reported_by_name(toy: Any, tmp_path: Path, attribute: str, value: Any, match: str) -> None:
    tokenizer = Bytes()
    setattr(tokenizer, attribute, value)
    with pytest.raises(UserError, match=match):
        make(toy(), tmp_path, tokenizer)
    assert not hidden(tmp_path)


def test_empty_corpus_leaves_no_entry(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no document with text"):
        make(toy([]), tmp_path)
    with pytest.raises(UserError, match="validation split is empty"):
        make(toy(), tmp_path, fraction=0.0)
    with pytest.raises(UserError, match=r"val_fraction=1\.5"):
        make(toy(), tmp_path, fraction=1.5)
    assert not hidden(tmp_path)


def test_paths_with_spaces_and_unicode_in_locale_c(toy: Any, tmp_path: Path) -> None:
    book = tmp_path / "mein Büch 世界.txt"
    book.write_text("\n".join(d.text for d in toy().given), encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from ablatio.data.corpus import prepare\n"
        "from ablatio_std.sources import Text; from ablatio_std.tokenizers.trained import BPE\n"
        "for _ in range(2):\n"
        "    corpus = prepare(Text(path=sys.argv[1]), BPE(vocab_size=300), 'bpe', Path(sys.argv[2]), 0.1)\n"
        "print(corpus.key, corpus.counts['validation']['documents'], 'torch' in sys.modules)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "HOME"} | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script, str(book), str(tmp_path / "ein Ort 世界")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "1"


@pytest.mark.slow
def test_state_of_the_union_with_the_default_tokenizer(tmp_path: Path) -> None:
    """The whole real corpus: counts, round trip, and opening it within milliseconds."""
    corpus = make(StateOfTheUnion(), tmp_path, BPE())
    assert {split: corpus.counts[split]["documents"] for split in SPLITS} == {"train": 213, "validation": 19}
    assert corpus.counts["validation"]["bytes"] == 714_927 and corpus.counts["train"]["bytes"] == 9_974_738
    width, tokens = corpus.tokenizer.token_bytes(), corpus.counts["train"]["tokens"]
    assert width[corpus.validation].sum() == 714_927
    assert 3.5 < 9_974_738 / tokens < 4
    texts = {document.id: document.text for document in StateOfTheUnion().documents()}
    first = corpus.tokenizer.decode(corpus.train[: corpus.train_starts[1]].tolist())
    assert first == texts["1790 George Washington"]
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        make(StateOfTheUnion(), tmp_path, BPE())
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.2
    facts = json.loads((corpus.folder / "meta.json").read_text())["content"]["facts"]
    assert facts == corpus.counts | {"encoding_seconds": corpus.encoding_seconds}
