"""WordPiece on bytes: greedy splits of words into the longest known pieces."""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated

import tokenizers as hf

from ablatio import Range, tokenizers
from ablatio.errors import DamagedFile
from ablatio_std.tokenizers._chunks import pieces_of
from ablatio_std.tokenizers._common import BYTE_OF, state_of
from ablatio_std.tokenizers._learned import Learned, byte_words, bytes_of, opening

INSIDE = "\N{UNDERTIE}"  # prefix of a piece that does not begin a word; BERT's ## could be text
_LONGEST = 1 << 30  # characters of a word: the library's own limit of 100 makes longer words unknown
_SHIFT = 0x1000  # in training, characters that do not begin a word are moved by this much
_BYTES = sorted(BYTE_OF)
_BASE = [*_BYTES, *(INSIDE + character for character in _BYTES)]
_TO_INSIDE = str.maketrans({c: chr(ord(c) + _SHIFT) for c in _BYTES})
_FROM_INSIDE = str.maketrans({chr(ord(c) + _SHIFT): c for c in _BYTES})
_INSIDES = {chr(code) for code in _FROM_INSIDE}


@tokenizers.register("wordpiece", paper="arXiv:1810.04805")
class WordPiece(Learned):
    """WordPiece (Schuster & Nakajima 2012; BERT): each word is split from the left into the longest known pieces.

    Words are GPT-2's, written in bytes, so that no text is unknown and all come back unchanged.  A piece that begins a
    word and one inside a word have different ids: 256 bytes of each kind, then merges of the most frequent pairs, as
    the tokenizers library trains it.  eos is the last id; ids that a small corpus does not need stay unused.
    """

    def __init__(
        self, *, vocab_size: Annotated[int, Range(513, 1_000_000), "number of ids, with twice 256 bytes and eos"] = 2048
    ) -> None:
        super().__init__(vocab_size)
        self._set_vocabulary(_BASE)

    def _set_vocabulary(self, tokens: list[str]) -> None:
        if tokens[: len(_BASE)] != _BASE or len(tokens) >= self.vocab_size or len(set(tokens)) < len(tokens):
            raise DamagedFile(f"a WordPiece of {len(tokens)} ids does not fit tokenizer.vocab_size={self.vocab_size}")
        self._tokens, self._made = tokens, None
        self._table = [bytes_of(token.removeprefix(INSIDE)) for token in tokens]
        self._table += [b""] * (self.vocab_size - len(tokens))

    def _build(self, *extra: tuple[str, int]) -> hf.Tokenizer:
        vocab = {token: i for i, token in enumerate(self._tokens)} | dict(extra)
        limit = {"max_input_chars_per_word": _LONGEST, "continuing_subword_prefix": INSIDE}
        model = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token=_BYTES[0], **limit))  # nothing is unknown
        model.pre_tokenizer = byte_words()
        return model

    def train(self, texts: Iterable[str]) -> None:
        # The library's own trainer numbers the pieces inside words in an order that differs between processes.
        alphabet = sorted([*_BYTES, *_INSIDES])
        trainer = hf.trainers.BpeTrainer(vocab_size=self.vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        model = hf.Tokenizer(hf.models.BPE())
        # Words come one per line, already split: a word written in bytes has no line end.
        model.pre_tokenizer = hf.pre_tokenizers.Split("\n", "removed")
        model.train_from_iterator(_marked(texts), trainer)
        vocab: dict[str, int] = json.loads(model.to_str())["model"]["vocab"]
        learned = [token for token in sorted(vocab, key=vocab.__getitem__) if len(token) > 1]
        self._set_vocabulary([*_BASE, *map(_written, learned)][: self.vocab_size - 1])

    def state(self) -> str:
        return json.dumps({"tokenizer": "wordpiece", "tokens": self._tokens}, ensure_ascii=False)

    def restore(self, state: str) -> None:
        saved = state_of(state)
        try:
            if saved["tokenizer"] != "wordpiece":
                raise ValueError(f"it is that of {saved['tokenizer']}")
            self._set_vocabulary([*map(str, saved["tokens"])])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedFile(f"the saved state is not that of tokenizer=wordpiece ({reason})") from error

    def fast(self, eos: str) -> hf.Tokenizer:
        model = self._build((eos, self.eos))
        parts = [hf.decoders.Replace(INSIDE, ""), hf.decoders.Fuse(), hf.decoders.ByteLevel()]
        model.decoder = hf.decoders.Sequence(parts)
        return opening(model, eos)


def _marked(texts: Iterable[str]) -> Iterator[str]:
    """The words of texts, one per line, with the characters inside of words moved to an alphabet of their own."""
    split, known = byte_words(), dict[str, str]()
    for text in texts:
        for piece in pieces_of(text):
            words = [word for word, _ in split.pre_tokenize_str(piece)]
            known.update((word, word[0] + word[1:].translate(_TO_INSIDE)) for word in words if word not in known)
            yield "\n".join(known[word] for word in words)
            if len(known) > 1 << 20:
                known.clear()


def _written(token: str) -> str:
    """A trained token in the notation of WordPiece."""
    return (INSIDE if token[0] in _INSIDES else "") + token.translate(_FROM_INSIDE)
