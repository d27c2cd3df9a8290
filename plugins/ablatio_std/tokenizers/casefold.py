"""Byte-pair encoding of a text whose capitals are written as small letters after a mark."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from ablatio import Range, tokenizers
from ablatio.data.types import Ids
from ablatio_std.tokenizers._case import MARKS, folded, unfolded
from ablatio_std.tokenizers._spelling import Spelling
from ablatio_std.tokenizers.trained import MergedBytes

_MARKS = MARKS.encode()


@tokenizers.register("casefold_bpe", paper="https://github.com/alasdairforsythe/capcode")
class CasefoldBPE(MergedBytes):
    """BPE on bytes of the case-folded text, so that "The", "the" and "THE" share their tokens; decoding restores case.

    A capital is written as its small letter after the byte 14, a word in capitals of two letters or more after the
    byte 15; the mark stands before the space of its word.  Folded are the letters of the Latin, Greek, Cyrillic and
    Armenian alphabets whose small form has as many bytes.  A mark counts no bytes, so bits per byte are those of the
    text; a byte 14 or 15 of the text itself is written with a 0 after it.  The tokenizers library cannot restore the
    case, so an exported run has no tokenizer files.
    """

    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Range(257, 1_000_000), "number of ids, with 256 bytes and eos"] = 2048,
        digits: Annotated[bool, "each digit is a token of its own"] = False,
        dropout: Annotated[float, Range(0, 1, open_high=True), "share of the merges left out in training text"] = 0.0,
    ) -> None:
        super().__init__(vocab_size, spelling=Spelling(digits), dropout=dropout)

    def train(self, texts: Iterable[str]) -> None:
        super().train(map(folded, texts))

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return super().encode([*map(folded, texts)])

    def encode_train(self, texts: Sequence[str]) -> list[Ids]:
        """Encode training documents: with dropout."""
        return super().encode_train([*map(folded, texts)]) if self.dropout else self.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return unfolded(super().decode(ids))

    def token_bytes(self) -> NDArray[np.int64]:
        """Bytes of the text that each id stands for: those of its token without the marks."""
        return np.array([len(token.translate(None, _MARKS)) for token in self._table], dtype=np.int64)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"case": "folded"}
