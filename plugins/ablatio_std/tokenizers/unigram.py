"""The unigram language model of SentencePiece, on bytes."""

import json
import math
from collections.abc import Iterable
from typing import Annotated

import tokenizers as hf

from ablatio import Range, tokenizers
from ablatio.errors import DamagedFile
from ablatio_std.tokenizers._common import BYTE_OF, state_of
from ablatio_std.tokenizers._learned import Learned, byte_words, bytes_of, opening, word_counts
from ablatio_std.tokenizers._unigram import fit_pieces

_BYTES = sorted(BYTE_OF)
_NEVER = -1e4  # log-probability of ids that stand for no text


@tokenizers.register("unigram", paper="arXiv:1804.10959")
class Unigram(Learned):
    """Unigram language model (Kudo 2018): the segmentation of a word with the highest product of probabilities.

    Pieces begin as all frequent substrings of words; expectation maximization fits their probabilities, and those that
    the likelihood of the text needs least are removed until vocab_size - 1 are left.  Words are GPT-2's, written in
    bytes, which always stay, so that no text is unknown and all come back unchanged.  eos is the last id.
    """

    def __init__(
        self, *, vocab_size: Annotated[int, Range(257, 1_000_000), "number of ids, with 256 bytes and eos"] = 2048
    ) -> None:
        super().__init__(vocab_size)
        self._set_vocabulary([(byte, math.log(1 / 256)) for byte in _BYTES])

    def _set_vocabulary(self, pieces: list[tuple[str, float]]) -> None:
        names = [piece for piece, _ in pieces]
        if names[:256] != _BYTES or len(names) >= self.vocab_size or len(set(names)) < len(names):
            raise DamagedFile(
                f"a unigram model of {len(names)} ids does not fit tokenizer.vocab_size={self.vocab_size}"
            )
        if not all(math.isfinite(score) for _, score in pieces):
            raise DamagedFile("a unigram model has log-probabilities that are not finite numbers")
        self._pieces, self._made = pieces, None
        self._table = [bytes_of(name) for name in names] + [b""] * (self.vocab_size - len(names))

    def _build(self, eos: str = "\u2400eos") -> hf.Tokenizer:
        # Names of unused ids begin with a character that no word has.
        unused = [(f"\u2400{i}", _NEVER) for i in range(len(self._pieces), self.eos)]
        model = hf.Tokenizer(hf.models.Unigram([*self._pieces, *unused, (eos, _NEVER)], unk_id=None))
        model.pre_tokenizer = byte_words()
        return model

    def train(self, texts: Iterable[str]) -> None:
        self._set_vocabulary(fit_pieces(word_counts(texts), _BYTES, self.vocab_size - 1))

    def state(self) -> str:
        return json.dumps({"tokenizer": "unigram", "pieces": self._pieces}, ensure_ascii=False)

    def restore(self, state: str) -> None:
        saved = state_of(state)
        try:
            if saved["tokenizer"] != "unigram":
                raise ValueError(f"it is that of {saved['tokenizer']}")
            self._set_vocabulary([(str(piece), float(score)) for piece, score in saved["pieces"]])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedFile(f"the saved state is not that of tokenizer=unigram ({reason})") from error

    def fast(self, eos: str) -> hf.Tokenizer:
        model = self._build(eos)
        model.decoder = hf.decoders.ByteLevel()
        return opening(model, eos)
