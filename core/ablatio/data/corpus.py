"""Tokenized corpora: two memory-mapped streams of tokens (train, validation), built once and shared by all runs.

Each document is stored as [eos] + tokens: its eos predicts its first token, the next eos ends it. The cache keys follow
from the source's fingerprint and the tokenizer's state, so a second run opens the cache and tokenizes nothing.
"""

import hashlib
import logging
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablatio.data.cache_store import get_or_build, key_of
from ablatio.data.shards import SPLITS, Resources, tokenize
from ablatio.data.splits import TrainValSplit, split_rule
from ablatio.data.tokenizer_measures import SECONDS
from ablatio.data.types import Ids, Source, Tokenizer, start_id, token_type
from ablatio.errors import UserError
from ablatio.storage.atomic_write import explained

ONE_PROCESS = Resources(workers=1)

log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Token streams of both splits, the start (eos) of each document, and counts of documents, tokens and bytes."""

    train: Ids
    validation: Ids
    train_starts: NDArray[np.int64]
    validation_starts: NDArray[np.int64]
    tokenizer: Tokenizer
    # split -> {"documents", "tokens", "bytes", "words"}; tokens include each document's eos, words are separated by
    # white space.  A source with fields that it does not use adds "unused_fields": name -> number of records; one that
    # left out rows that cannot be used, "skipped_rows": their number.
    counts: dict[str, Any]
    fingerprint: str
    key: str
    folder: Path
    encoding_seconds: float | None = None  # CPU seconds of tokenizing, when the cache was built

    @property
    def eos(self) -> int:
        """Id of the token that opens each document in the streams: bos or, without one, the end-of-document token."""
        return start_id(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.tokenizer.vocab_size


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    tokenizer_key: str,
    cache: Path,
    val_fraction: float,
    resources: Resources = ONE_PROCESS,
) -> Corpus:
    """Open the corpus from the cache, building it first if needed; trains or restores `tokenizer` in place.

    `tokenizer_key` identifies the tokenizer with its knobs and version. Raises UserError for input that cannot be
    used, EnvironmentFault if the cache cannot be written.
    """
    split = train_or_load_tokenizer(source, tokenizer, tokenizer_key, cache, val_fraction)
    return tokenized(split, tokenizer, cache, resources)


def tokenized(
    split: tuple[TrainValSplit, str, str], tokenizer: Tokenizer, cache: Path, resources: Resources = ONE_PROCESS
) -> Corpus:
    """Open the corpus of documents with their fingerprint and cache key, as `split_of` returns them."""
    by_split, fingerprint, content = split
    state = hashlib.sha256(tokenizer.state().encode()).hexdigest()
    # The state as well as its key: a tokenizer that trains differently on another version gives other tokens.
    key = key_of("tokens", content, state, str(tokenizer.vocab_size), str(start_id(tokenizer)))
    folder = cache / "tokens" / key
    work = cache / "shards" / key
    counts = get_or_build(folder, partial(_tokenize, tokenizer, by_split, work, resources))
    # Shards that an interrupted build left for the next one; the entry is committed, so that nobody needs them.
    if work.exists():
        shutil.rmtree(work, ignore_errors=True)
    dtype = token_type(tokenizer.vocab_size)
    with explained("open", folder):
        train, validation = (np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r") for split in SPLITS)
        train_at, validation_at = (np.fromfile(folder / f"{split}.documents", dtype=np.int64) for split in SPLITS)
    # Not a fact of the data: it must not stand among the counts, which runs compare.
    seconds = counts.pop(SECONDS, None)
    return Corpus(train, validation, train_at, validation_at, tokenizer, counts, fingerprint, key, folder, seconds)


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
            f"val_fraction={val_fraction}: expected a fraction of the documents, 0 <= val_fraction < 1\n"
            "    try: data.val_fraction=0.05"
        )
    fingerprint = source.fingerprint()
    content = key_of("content", fingerprint, split_rule(val_fraction))
    return TrainValSplit(source, val_fraction), fingerprint, content


def _train(tokenizer: Tokenizer, by_split: TrainValSplit) -> dict[str, str]:
    begin = time.perf_counter()
    tokenizer.train(document.text for document in by_split.documents("train"))
    log.info("trained the tokenizer in %.1f s", time.perf_counter() - begin)
    return {"state": tokenizer.state()}


def _tokenize(
    tokenizer: Tokenizer, by_split: TrainValSplit, work: Path, resources: Resources, folder: Path
) -> dict[str, Any]:
    begin = time.perf_counter()
    made = tokenize(tokenizer, by_split, folder, work, resources)
    log.info("tokenized %s in %.1f s", made["counts"], time.perf_counter() - begin)
    unused: dict[str, int] = getattr(by_split.source, "unused_fields", {})
    skipped = int(getattr(by_split.source, "skipped_rows", 0))
    notes: dict[str, Any] = {"unused_fields": dict(unused)} if unused else {}
    notes |= {"skipped_rows": skipped} if skipped else {}
    counts: dict[str, Any] = made["counts"]
    return counts | notes | {SECONDS: made["seconds"]}
