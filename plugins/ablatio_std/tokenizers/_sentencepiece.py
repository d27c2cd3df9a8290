"""SentencePiece model files as tokenizers of the tokenizers library, read without sentencepiece or protobuf.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers as hf

from ablatio.data.data_files import Place, invalid_data, readable

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, PAIRS = 1, 2  # types of models; others split into words or characters
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class SentencePiece:
    """Content of a model file: pieces as (text, score, type) by id, type of the model, and normalization."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    one_space: bool = True

    @classmethod
    def read(cls, file: Path) -> "SentencePiece":
        """Read a file. Raises UserError if it is no SentencePiece model."""
        with readable(file):
            content = file.read_bytes()
        made = cls()
        try:
            for number, value in _fields(content):
                if number == 1:
                    found = dict(_fields(value))
                    score = struct.unpack("<f", found[2])[0] if 2 in found else 0.0
                    made.pieces.append((found[1].decode(), score, found.get(3, NORMAL)))
                elif number == 2:
                    made.kind = dict(_fields(value)).get(3, UNIGRAM)
                # Defaults of the format: a file leaves out what it has not changed.
                elif number == 3:
                    rules = dict(_fields(value))
                    made.charsmap = rules.get(2, b"")
                    made.dummy_prefix, made.one_space = bool(rules.get(3, 1)), bool(rules.get(4, 1))
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
            raise _invalid(file, f"{type(error).__name__}: {error}") from None
        if not made.pieces or made.kind not in (UNIGRAM, PAIRS):
            raise _invalid(file, f"{len(made.pieces)} pieces, model type {made.kind}")
        return made

    def tokenizer(self) -> hf.Tokenizer:
        """The same tokenizer in the tokenizers library; it adds neither a beginning nor an end to a text."""
        types = [t for _, _, t in self.pieces]
        unknown = types.index(UNKNOWN) if UNKNOWN in types else None
        by_bytes = BYTE in types
        model: Any
        if self.kind == UNIGRAM:
            model = hf.models.Unigram([(p, s) for p, s, _ in self.pieces], unk_id=unknown, byte_fallback=by_bytes)
        else:
            vocab = {piece: i for i, (piece, _, _) in enumerate(self.pieces)}
            scores = {piece: s for piece, s, t in self.pieces if t in (NORMAL, USER_DEFINED)}
            unk = None if unknown is None else self.pieces[unknown][0]
            model = hf.models.BPE(vocab, _merges(scores), unk_token=unk, fuse_unk=True, byte_fallback=by_bytes)
        made = hf.Tokenizer(model)
        steps: list[Any] = [hf.normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        # SentencePiece's normalizer also strips the ends; the rest of its rules are in the charsmap.
        if self.one_space:
            steps += [hf.normalizers.Strip(), hf.normalizers.Replace(hf.Regex(" {2,}"), " ")]
        if steps:
            made.normalizer = hf.normalizers.Sequence(steps)
        scheme = "always" if self.dummy_prefix else "never"
        made.pre_tokenizer = hf.pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
        fallback = [hf.decoders.ByteFallback(), hf.decoders.Fuse()] if by_bytes else []
        made.decoder = hf.decoders.Sequence([*fallback, hf.decoders.Metaspace(SPACE, prepend_scheme=scheme)])
        made.add_special_tokens([hf.AddedToken(p, special=True) for p, _, t in self.pieces if t in (UNKNOWN, CONTROL)])
        made.add_tokens([hf.AddedToken(p, normalized=False) for p, _, t in self.pieces if t == USER_DEFINED])
        return made


def _merges(scores: Mapping[str, float]) -> Sequence[tuple[str, str]]:
    """Merges of a BPE in their order: each way to make a piece of two pieces, by the score of the result."""
    rank = {piece: i for i, piece in enumerate(scores)}
    found = []
    for piece, score in scores.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        # As transformers' converter: ties between cuts of one piece go by the ids of the parts.
        known = sorted((rank[a], rank[b], a, b) for a, b in cuts if a in rank and b in rank)
        found += [(-score, rank[piece], n, a, b) for n, (_, _, a, b) in enumerate(known)]
    return [(a, b) for *_, a, b in sorted(found)]


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: int, or bytes that the caller interprets."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"field {number} has the wire type {wire}")
        if at + size > len(data):
            raise ValueError("the file ends inside a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _invalid(file: Path, came: str) -> Exception:
    return invalid_data(Place(file), f"not a SentencePiece model ({came})", "a unigram or BPE model of SentencePiece")
