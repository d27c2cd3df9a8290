"""Tokenize the documents of both splits in one pass: in parallel, with bounded memory, resumable after a crash.

Groups of documents are encoded by worker processes and collected in order into shards. The shards of a large corpus are
cache entries, so an interrupted preparation goes on after the last one; at the end they become one stream per split.
The result depends on neither the number of workers nor the sizes of groups and shards.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablatio.data.cache_store import MissingError, get_or_build, verify
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Ids, Split, Tokenizer, start_id, token_type
from ablatio.data.workers import available_cores, ordered_map
from ablatio.errors import DamagedFile, UserError
from ablatio.storage.atomic_write import explained, write_bytes, write_pieces

SPLITS: tuple[Split, Split] = ("train", "validation")
SHARD = 1 << 24  # tokens of a shard: 32 or 64 MiB, which are held in memory until the shard is written
_GROUP = 1 << 20  # characters that are encoded at a time
_ALONE = 16  # groups that this process encodes before it starts workers, which a small corpus does not need
_BASE, _PER_WORKER = 192, 160  # MiB: of a shard and its groups, and of a worker with a million tokens (measured)
_CHUNK = 1 << 22  # bytes that are copied at a time

Facts = dict[str, Any]
Group = list[tuple[Split, str]]

log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True)
class Resources:
    """Processes and memory for the preparation of a corpus; they do not change the result.

    workers  processes that tokenize; 0: one per available core
    memory   MiB for text and tokens on their way, of all processes together; limits the number of workers
    """

    workers: int = 0
    memory: int = 2048

    def processes(self) -> int:
        """Number of worker processes, at least 1."""
        wanted = self.workers or available_cores()
        return max(1, min(wanted, (self.memory - _BASE) // _PER_WORKER))


@dataclass(slots=True)
class Piece:
    """Token stream of consecutive documents of one split: ids in the stored type, and the length of each document."""

    tokens: bytes
    lengths: NDArray[np.int64]
    bytes: int
    words: int


@dataclass(slots=True)
class Encoded:
    """The pieces of a group, the number of its documents, and the CPU seconds of encoding it."""

    pieces: dict[Split, Piece]
    documents: int
    seconds: float


@dataclass(slots=True)
class Shard:
    """Pieces of consecutive groups: at least `SHARD` tokens, unless it is the last one."""

    pieces: dict[Split, list[Piece]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    documents: int = 0
    seconds: float = 0.0
    tokens: int = 0
    last: bool = False

    def add(self, group: Encoded) -> None:
        """Append a group."""
        for split, piece in group.pieces.items():
            self.pieces[split].append(piece)
            self.tokens += int(piece.lengths.sum())
        self.documents += group.documents
        self.seconds += group.seconds

    def write(self, folder: Path) -> Facts:
        """Write stream and document starts of both splits; return the facts of the entry."""
        counts = {}
        for split, pieces in self.pieces.items():
            lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(p.lengths for p in pieces)])
            write_pieces(folder / f"{split}.bin", (p.tokens for p in pieces))
            write_bytes(folder / f"{split}.documents", (np.cumsum(lengths) - lengths).tobytes())
            counts[split] = {
                "documents": len(lengths), "tokens": int(lengths.sum()), "bytes": sum(p.bytes for p in pieces),
                "words": sum(p.words for p in pieces),
            }  # fmt: skip
        return {"counts": counts, "read": self.documents, "seconds": self.seconds, "last": self.last}


def tokenize(tokenizer: Tokenizer, by_split: TrainValSplit, folder: Path, work: Path, resources: Resources) -> Facts:
    """Write `train.bin`, `validation.bin` and the starts of their documents to `folder`.

    work  folder of the shards of a large corpus; those that an interrupted preparation left there are used

    Returns {"counts": {split: {documents, tokens, bytes, words}}, "seconds": CPU seconds of encoding}.
    """
    begin = time.perf_counter()
    done = list(_finished(work))
    if done:
        log.info("%d tokenized shard(s) of an interrupted preparation are used", len(done))
    if not (done and done[-1]["last"]):
        # The source is read again from its beginning: it has no position that could be stored, and reading is cheap
        # beside tokenizing.
        documents = islice(by_split.assigned(), sum(facts["read"] for facts in done), None)
        for shard in _shards(_encoded(tokenizer, _groups(documents), resources)):
            # A corpus of one shard is written where it belongs; copying it from a shard would double the work.
            if shard.last and not done:
                return _without_position(shard.write(folder))
            done.append(get_or_build(work / f"{len(done):06d}", shard.write))
            size = sum(facts["counts"][split]["bytes"] for facts in done for split in SPLITS)
            log.info("tokenized %.1f GB in %.0f s", size / 1e9, time.perf_counter() - begin)
    return _joined(work, done, folder)


def _without_position(facts: Facts) -> Facts:
    return {"counts": facts["counts"], "seconds": facts["seconds"]}


def _finished(work: Path) -> Iterator[Facts]:
    """Facts of the shards that are there, up to the first one that is missing or damaged."""
    for number in count():
        try:
            yield verify(work / f"{number:06d}")
        except (MissingError, DamagedFile):
            return


def _joined(work: Path, shards: Sequence[Facts], folder: Path) -> Facts:
    """Write the streams of all shards as one."""
    for split in SPLITS:
        files = [work / f"{number:06d}" / f"{split}.bin" for number in range(len(shards))]
        write_pieces(folder / f"{split}.bin", chain.from_iterable(map(_chunks, files)))
        tokens = [facts["counts"][split]["tokens"] for facts in shards]
        offsets = np.cumsum([0, *tokens])
        with explained("read", work):
            starts = (np.fromfile(f.with_suffix(".documents"), dtype=np.int64) for f in files)
            write_pieces(
                folder / f"{split}.documents", ((s + o).tobytes() for s, o in zip(starts, offsets, strict=False))
            )
    names = shards[0]["counts"]["train"]
    counts = {s: {n: sum(facts["counts"][s][n] for facts in shards) for n in names} for s in SPLITS}
    return {"counts": counts, "seconds": sum(facts["seconds"] for facts in shards)}


def _chunks(file: Path) -> Iterator[bytes]:
    with explained("read", file), file.open("rb") as stream:
        yield from iter(partial(stream.read, _CHUNK), b"")


def _shards(groups: Iterable[Encoded]) -> Iterator[Shard]:
    shard = Shard()
    for group in groups:
        if shard.tokens >= SHARD:
            yield shard
            # Only when one more group comes is it known that the shard before was not the last.
            shard = Shard()
        shard.add(group)
    shard.last = True
    yield shard


def _encoded(tokenizer: Tokenizer, groups: Iterator[Group], resources: Resources) -> Iterator[Encoded]:
    encode = partial(encode_group, tokenizer)
    yield from map(encode, islice(groups, _ALONE))
    if (first := next(groups, None)) is not None:
        yield from ordered_map(encode, chain([first], groups), resources.processes())


def _groups(documents: Iterable[tuple[Split, Any]]) -> Iterator[Group]:
    """Documents in groups of about `_GROUP` characters."""
    group: Group = []
    size = 0
    for split, document in documents:
        group.append((split, document.text))
        size += len(document.text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def encode_group(tokenizer: Tokenizer, group: Group) -> Encoded:
    """Encode a group of documents; training documents with `encode_train` if the tokenizer has it."""
    # CPU time of this process: the wall clock would count the other workers and whatever else the machine does.
    begin = time.process_time()
    methods: Mapping[Split, Callable[[Sequence[str]], list[Ids]]] = {
        # Random segmentation (BPE dropout) belongs to training; held-out text must be the same for every run.
        "train": getattr(tokenizer, "encode_train", tokenizer.encode), "validation": tokenizer.encode
    }  # fmt: skip
    pieces = {}
    for split in SPLITS:
        if texts := [text for of, text in group if of == split]:
            pieces[split] = _piece(tokenizer, methods[split](texts), texts)
    return Encoded(pieces, len(group), time.process_time() - begin)


CONTRACT = "\n    try: ablatio show tokenizer --author, for what a tokenizer returns"


def _piece(tokenizer: Tokenizer, encoded: list[Ids], texts: Sequence[str]) -> Piece:
    if len(encoded) != len(texts):
        raise UserError(
            f"tokenizer {type(tokenizer).__name__}: {len(encoded)} results for {len(texts)} texts{CONTRACT}"
        )
    start = np.array([start_id(tokenizer)], dtype=np.int64)
    ids = np.concatenate([part for ids in encoded for part in (start, ids)])
    _check(ids, len(texts), tokenizer)  # before the cast below, which would wrap invalid ids silently
    lengths = np.array([len(ids) + 1 for ids in encoded], dtype=np.int64)
    tokens = ids.astype(token_type(tokenizer.vocab_size)).tobytes()
    return Piece(tokens, lengths, sum(len(t.encode()) for t in texts), sum(len(t.split()) for t in texts))


def _check(ids: Ids, documents: int, tokenizer: Tokenizer) -> None:
    """Raise UserError for ids that cannot be stored: a plugin's tokenizer may be wrong, and the cache would keep it."""
    name = type(tokenizer).__name__
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"tokenizer {name}: encode returned {ids.dtype}, expected integers{CONTRACT}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= tokenizer.vocab_size:
        last = tokenizer.vocab_size - 1
        raise UserError(f"tokenizer {name}: ids from {low} to {high}, expected 0 to {last}{CONTRACT}")
    if int((ids == (start := start_id(tokenizer))).sum()) != documents:
        token = "eos" if start == tokenizer.eos else "bos"
        raise UserError(
            f"tokenizer {name}: a text encodes to {token} ({start}), which is reserved for the start of documents"
            f"{CONTRACT}"
        )
