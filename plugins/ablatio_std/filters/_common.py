"""Shared by filters: words, lines and sentences of a text, stable hashes, quantiles."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ablatio.data.data_files import files_digest, read_text
from ablatio.data.records import kind_of, records
from ablatio.errors import UserError

WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+|$)\s*", re.MULTILINE | re.DOTALL)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Split a text into sentences; joined they give the text again, as each keeps the space behind it."""
    return [piece for line in text.splitlines(keepends=True) for piece in _SENTENCE.findall(line)] if text else []


def hash64(text: str) -> int:
    """BLAKE2b of a text with 64 bits: the same on every machine."""
    # Not Python's hash(), which differs between processes.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def ngrams(tokens: Sequence[str], n: int) -> Iterable[str]:
    """All n consecutive words, joined by a space; fewer words are one n-gram."""
    if 0 < len(tokens) < n:
        return [" ".join(tokens)]
    return (" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hashes of texts: (n,)."""
    return np.fromiter((hash64(text) for text in texts), dtype=np.uint64)


def mixed(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Another hash of each hash, by the finalizer of splitmix64; `salt` chooses one of many."""
    with np.errstate(over="ignore"):
        x = values + np.uint64(salt + 1) * _MULTIPLIER
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def quantile_bounds(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Values between which the shares `low` to `high` of the sorted values lie, both included."""
    found = np.quantile(np.asarray(values, dtype=np.float64), [low, high], method="nearest")
    return float(found[0]), float(found[1])


def given_texts(path: str, knob: str) -> list[str]:
    """Texts of a file, or of the files of a folder: the field `text` of JSON lines, the paragraphs of a single text.

    Raises UserError if there is no such file, or no text in it; `knob` names the setting: `classifier.good`.
    """
    files, found = _files(path, knob), list[str]()
    for file in files:
        if kind_of(file) in (".jsonl", ".json"):
            found += [str(record.fields["text"]) for record in records(file) if record.fields.get("text")]
        else:
            found += read_text(file).split("\n\n") if len(files) == 1 else [read_text(file)]
    if not (texts := [text for text in found if text.strip()]):
        raise UserError(f"filter.{knob}={path} has no text; expected plain text, or JSON lines with the field `text`\n"
                        f"    try: head {path}")  # fmt: skip
    return texts


def given_digest(path: str, knob: str) -> str:
    """Hash of the files that `given_texts` reads; empty without a path."""
    return files_digest(_files(path, knob), "filter-1") if path else ""


def _files(path: str, knob: str) -> list[Path]:
    place = Path(path).expanduser()
    found = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] if place.is_file() else []
    if not found:
        raise UserError(f"filter.{knob}: there is no file {place}\n    try: ls {place.parent}")
    return found
