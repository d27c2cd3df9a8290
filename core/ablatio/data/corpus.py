"""Tokenized corpora: two memory-mapped streams of tokens (train, validation), built once and shared by all runs.

Each document is stored as [eos] + tokens: its eos predicts its first token, the next eos ends it. The cache keys follow
from the source's fingerprint and the tokenizer's state, so a second run opens the cache and tokenizes nothing.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ablatio.data.cache_store import get_or_build, key_of
from ablatio.data.splits import TrainValSplit, split_rule
from ablatio.data.types import Document, Ids, Source, Split, Tokenizer, start_id, token_type
from ablatio.errors import UserError
from ablatio.storage.atomic_write import explained, write_bytes, write_pieces

SPLITS: tuple[Split, Split] = ("train", "validation")
_GROUP = 1 << 20  # characters that are tokenized at a time: bounds the memory for a corpus of any size

log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Token streams of both splits, the start (eos) of each document, and counts of documents, tokens and bytes."""

    train: Ids
    validation: Ids
    train_starts: NDArray[np.int64]
    validation_starts: NDArray[np.int64]
    tokenizer: Tokenizer
    # split -> {"documents", "tokens", "bytes"}; tokens include each document's eos.  A source with fields that it does
    # not use adds "unused_fields": name -> number of records.
    counts: dict[str, dict[str, int]]
    fingerprint: str
    key: str
    folder: Path

    @property
    def eos(self) -> int:
        """Id of the token that opens each document in the streams: bos or, without one, the end-of-document token."""
        return start_id(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.tokenizer.vocab_size


def prepare(source: Source, tokenizer: Tokenizer, tokenizer_key: str, cache: Path, val_fraction: float) -> Corpus:
    """Open the corpus from the cache, building it first if needed; trains or restores `tokenizer` in place.

    `tokenizer_key` identifies the tokenizer with its knobs and version. Raises UserError for input that cannot be
    used, EnvironmentFault if the cache cannot be written.
    """
    return tokenized(train_or_load_tokenizer(source, tokenizer, tokenizer_key, cache, val_fraction), tokenizer, cache)


def tokenized(split: tuple[TrainValSplit, str, str], tokenizer: Tokenizer, cache: Path) -> Corpus:
    """Open the corpus of documents with their fingerprint and cache key, as `split_of` returns them."""
    by_split, fingerprint, content = split
    state = hashlib.sha256(tokenizer.state().encode()).hexdigest()
    key = key_of("tokens", content, state, str(tokenizer.vocab_size), str(start_id(tokenizer)))
    folder = cache / "tokens" / key
    counts = get_or_build(folder, partial(_tokenize, tokenizer, by_split))
    dtype = token_type(tokenizer.vocab_size)
    with explained("open", folder):
        train, validation = (np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r") for split in SPLITS)
        train_at, validation_at = (np.fromfile(folder / f"{split}.documents", dtype=np.int64) for split in SPLITS)
    return Corpus(train, validation, train_at, validation_at, tokenizer, counts, fingerprint, key, folder)


def train_or_load_tokenizer(
    source: Source, tokenizer: Tokenizer, tokenizer_key: str, cache: Path, val_fraction: float
) -> tuple[TrainValSplit, str, str]:
    """Train `tokenizer` on the training documents, or restore its trained state from the cache.

    Returns the split of the documents, the source's fingerprint, and the cache key of source and split rule.
    """
    split = by_split, _, content = split_of(source, val_fraction)
    if tokenizer.trained:
        entry = cache / "tokenizers" / key_of("tokenizer", content, tokenizer_key)
        tokenizer.restore(get_or_build(entry, lambda _: _train(tokenizer, by_split))["state"])
    return split


def split_of(source: Source, val_fraction: float) -> tuple[TrainValSplit, str, str]:
    """Return the split of the documents, the source's fingerprint, and the cache key of source and split rule."""
    if not 0.0 <= val_fraction < 1.0:
        raise UserError(
            f"val_fraction={val_fraction}: expected a fraction of the documents, 0 <= val_fraction < 1; try 0.05"
        )
    fingerprint = source.fingerprint()
    content = key_of("content", fingerprint, split_rule(val_fraction))
    return TrainValSplit(source, val_fraction), fingerprint, content


def _train(tokenizer: Tokenizer, by_split: TrainValSplit) -> dict[str, str]:
    begin = time.perf_counter()
    tokenizer.train(document.text for document in by_split.documents("train"))
    log.info("trained the tokenizer in %.1f s", time.perf_counter() - begin)
    return {"state": tokenizer.state()}


def _tokenize(tokenizer: Tokenizer, by_split: TrainValSplit, folder: Path) -> dict[str, dict[str, int]]:
    begin = time.perf_counter()
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        starts: list[NDArray[np.int64]] = []
        counts[split] = {"documents": 0, "tokens": 0, "bytes": 0}
        write_pieces(folder / f"{split}.bin", _stream(tokenizer, by_split.documents(split), counts[split], starts))
        write_bytes(folder / f"{split}.documents", np.concatenate(starts).tobytes())
    log.info("tokenized %s in %.1f s", counts, time.perf_counter() - begin)
    unused: dict[str, int] = getattr(by_split.source, "unused_fields", {})
    return counts | ({"unused_fields": dict(unused)} if unused else {})


def _stream(
    tokenizer: Tokenizer, documents: Iterator[Document], count: dict[str, int], starts: list[NDArray[np.int64]]
) -> Iterator[bytes]:
    """Yield the stream in pieces; fills `count` and `starts` (positions of the documents) on the way."""
    start = np.array([start_id(tokenizer)], dtype=np.int64)
    dtype = token_type(tokenizer.vocab_size)
    for texts in _groups(documents):
        encoded = tokenizer.encode(texts)
        if len(encoded) != len(texts):
            raise UserError(f"tokenizer {type(tokenizer).__name__}: {len(encoded)} results for {len(texts)} texts")
        lengths = np.array([len(ids) + 1 for ids in encoded], dtype=np.int64)
        piece = np.concatenate([part for ids in encoded for part in (start, ids)])
        _check(piece, len(texts), tokenizer)  # before the cast below, which would wrap invalid ids silently
        starts.append(count["tokens"] + np.cumsum(lengths) - lengths)
        count["documents"] += len(texts)
        count["tokens"] += len(piece)
        count["bytes"] += sum(len(text.encode()) for text in texts)
        yield piece.astype(dtype).tobytes()


def _groups(documents: Iterator[Document]) -> Iterator[list[str]]:
    """Texts in groups of about `_GROUP` characters."""
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document.text)
        size += len(document.text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _check(piece: Ids, documents: int, tokenizer: Tokenizer) -> None:
    """Raise UserError for ids that cannot be stored: a plugin's tokenizer may be wrong, and the cache would keep it."""
    name = type(tokenizer).__name__
    if not np.issubdtype(piece.dtype, np.integer):
        raise UserError(f"tokenizer {name}: encode returned {piece.dtype}, expected integers")
    low, high = int(piece.min()), int(piece.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise UserError(f"tokenizer {name}: ids from {low} to {high}, expected 0 to {tokenizer.vocab_size - 1}")
    if int((piece == (start := start_id(tokenizer))).sum()) != documents:
        token = "eos" if start == tokenizer.eos else "bos"
        raise UserError(
            f"tokenizer {name}: a text encodes to {token} ({start}), which is reserved for the start of documents"
        )
