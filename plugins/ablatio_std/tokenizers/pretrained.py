"""The tokenizer of a model that exists: a run's own, or the tokenizer.json of a folder that transformers wrote."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio import tokenizers
from ablatio.data.types import Ids, Tokenizer, token_type
from ablatio.errors import DamagedFile, UserError
from ablatio_std.tokenizers._common import BYTE_OF, state_of, text_of

_AT_ONCE = 64  # texts that are encoded together: the library keeps a hundred bytes and more of each token
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")  # the sign between documents, if none is said
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # SentencePiece's way to write a byte that is no character of its own


class Fast:
    """A tokenizer.json of the tokenizers library; text that looks like a special token is text.

    specials   id by name: what a chat template is written in
    """

    trained = False

    def __init__(self, model: hf.Tokenizer, eos: str | None, said: str, where: str) -> None:
        model.encode_special_tokens = True
        model.no_truncation()
        model.no_padding()
        self._model = model
        added = model.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self.vocab_size = max(max(model.get_vocab().values()), max(added, default=0)) + 1
        names = [eos] if eos else [*_ENDS, said, *self.specials]
        found = [model.token_to_id(name) for name in names if model.token_to_id(name) is not None]
        if not found:
            raise UserError(
                f"{where}: there is no token {eos!r} for the end of a document; special tokens are "
                f"{', '.join(list(self.specials)[:8]) or 'none'}\n    try: tokenizer.eos=..."
            )
        self.eos = int(found[0])
        self._table = self._bytes()

    def _bytes(self) -> list[bytes]:
        """What each id stands for; special tokens for nothing."""
        vocab = {i: token for token, i in self._model.get_vocab().items()}
        by_byte = "ByteLevel" in str(json.loads(self._model.to_str()).get("decoder"))
        return [self._spelled(vocab.get(i, ""), by_byte) for i in range(self.vocab_size)]

    def _spelled(self, token: str, by_byte: bool) -> bytes:
        if token in self.specials:
            return b""
        if by_byte:
            known = all(c in BYTE_OF for c in token)
            return bytes(BYTE_OF[c] for c in token) if known else token.encode()
        if match := _BYTE.match(token):
            return bytes([int(match[1], 16)])
        return token.replace("\u2581", " ").encode()

    def train(self, texts: Iterable[str]) -> None:
        """It was trained elsewhere."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        dtype, found = token_type(self.vocab_size), list[Ids]()
        for start in range(0, len(texts), _AT_ONCE):
            encoded = self._model.encode_batch_fast(list(texts[start : start + _AT_ONCE]), add_special_tokens=False)
            found += [np.array(result.ids, dtype=dtype) for result in encoded]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self._table], dtype=np.int64)

    def state(self) -> str:
        sign = self._model.id_to_token(self.eos)
        return json.dumps({"tokenizer": "pretrained", "eos": sign, "model": json.loads(self._model.to_str())})

    def restore(self, state: str) -> None:
        if state_of(state) != state_of(self.state()):
            raise DamagedFile("this is not the state of tokenizer=pretrained with this folder")

    def fast(self, eos: str) -> hf.Tokenizer:
        """With its own end sign, whatever it is called, in front of each text, as a document begins in training."""
        made, sign = hf.Tokenizer.from_str(self._model.to_str()), self._model.id_to_token(self.eos)
        made.post_processor = hf.processors.TemplateProcessing(f"{sign} $A", special_tokens=[(sign, self.eos)])
        return made


@tokenizers.register("pretrained", trained=False, reads_folder=True)
def pretrained(
    *,
    path: Annotated[str, "folder of a run, or one with tokenizer.json as transformers writes it"] = "",
    eos: Annotated[str | None, "the token between documents; by default the folder's own"] = None,
) -> Tokenizer:
    """The tokenizer that a model was trained with, unchanged: ids mean what they meant to it."""
    file = Path(path).expanduser() / "tokenizer.json"
    if not path or not file.is_file():
        raise UserError(
            f"tokenizer.path: there is no {file if path else 'folder (none came)'}; expected a run or a model folder"
            "\n    try: ablatio fetch smollm2"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file} holds a {type(data).__name__}, a tokenizer was expected")
    if "state" in data:  # a run's own: the option that it used, and what that had learnt
        if data["name"] != "pretrained":
            found: Any = tokenizers.build(str(data["name"]), data["knobs"])
            found.restore(data["state"])
            found.trained = False  # it has learnt what it knows: other documents must not change it
            found.made_as = {"name": data["name"], "knobs": data["knobs"]}
            return found
        came = state_of(data["state"])
        data, eos = came["model"], came["eos"]
    try:
        model = hf.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises bare Exceptions for what it cannot read
        raise UserError(f"{file} is no tokenizer that can be read: {error}") from None
    return Fast(model, eos, _said(file.parent), str(file))


def _said(folder: Path) -> str:
    """The end of an answer as the folder has it; of a document, where none of the usual signs is among its tokens."""
    path = folder / "tokenizer_config.json"
    said: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
    return str(said.get("content") if isinstance(said, dict) else said or "")
