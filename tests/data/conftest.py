"""Fixtures: small corpora, and a process without root's permissions."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ablatio.data.types import Document
from ablatio_std.tokenizers.trained import BPE

WORDS = ["the", "law", "of", "a", "free", "people", "is", "will,", "and", "世界", "naïve", "🙂", "1790", "it's"]


def sentence(i: int, words: int = 30) -> str:
    digest = hashlib.sha256(str(i).encode()).digest()
    return " ".join(WORDS[digest[j % 32] % len(WORDS)] + ("\n" if j % 7 == 6 else "") for j in range(words))


class Toy:
    """In-memory source that counts how often it is read."""

    def __init__(self, documents: list[Document]) -> None:
        self.given, self.reads = documents, 0

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        yield from self.given

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([[d.text, d.split] for d in self.given]).encode()).hexdigest()


@pytest.fixture
def toy() -> Callable[..., Toy]:
    """toy(): 40 documents split by hash; toy([...]): the given documents."""

    def make(documents: list[Document] | None = None) -> Toy:
        return Toy([Document(sentence(i), str(i)) for i in range(40)] if documents is None else documents)

    return make


@pytest.fixture(scope="session")
def small_bpe() -> BPE:
    tokenizer = BPE(vocab_size=320)
    tokenizer.train([sentence(i) for i in range(60)])
    return tokenizer


@pytest.fixture
def corpus(tmp_path: Path, toy: Callable[..., Toy]) -> Any:
    """Byte-tokenized corpus of 40 documents of about 200 bytes."""
    from ablatio.data.corpus import prepare
    from ablatio_std.tokenizers.trained import Bytes

    return prepare(toy(), Bytes(), "bytes", tmp_path / "cache", 0.2)


@contextmanager
def _no_rights() -> Iterator[None]:
    """Run as an ordinary user: root is not subject to permissions."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def unprivileged(tmp_path: Path) -> Any:
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:  # pytest makes them for their owner alone
            folder.chmod(0o755)
    return _no_rights
