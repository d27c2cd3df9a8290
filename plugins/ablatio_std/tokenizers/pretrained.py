"""The tokenizer of an existing model: that of a run, or the tokenizer.json of a folder written by transformers."""

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

_AT_ONCE = 64  # texts per batch: the library keeps over a hundred bytes of memory per token
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")  # end-of-document tokens tried in this order
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # SentencePiece's notation of a byte that is not a whole character


class Fast:
    """A tokenizer of the tokenizers library; text that looks like a special token is encoded as ordinary text.

    specials   ids of the special tokens by name, for chat templates
    """

    trained = False

    def __init__(self, model: hf.Tokenizer, eos: str | None, answer_end: str, where: str) -> None:
        model.encode_special_tokens = True
        model.no_truncation()
        model.no_padding()
        self._model = model
        added = model.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        self.vocab_size = max(max(model.get_vocab().values()), max(added, default=0)) + 1
        names = [eos] if eos else [*_ENDS, answer_end, *self.specials]
        found = [model.token_to_id(name) for name in names if model.token_to_id(name) is not None]
        if not found:
            raise UserError(
                f"{where}: there is no token {eos!r} to end documents with; its special tokens are "
                f"{', '.join(list(self.specials)[:8]) or 'none'}\n    try: tokenizer.eos=..."
            )
        self.eos = int(found[0])
        self._table = self._bytes()

    def _bytes(self) -> list[bytes]:
        """Bytes of each id; none for special tokens."""
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
        """Do nothing: it is already trained."""

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
        eos = self._model.id_to_token(self.eos)
        return json.dumps({"tokenizer": "pretrained", "eos": eos, "model": json.loads(self._model.to_str())})

    def restore(self, state: str) -> None:
        if state_of(state) != state_of(self.state()):
            raise DamagedFile("the saved state is not that of tokenizer=pretrained with this folder")

    def fast(self, eos: str) -> hf.Tokenizer:
        """A copy that puts its own end-of-document token (not `eos`) in front of each text, as in training."""
        copied, own_eos = hf.Tokenizer.from_str(self._model.to_str()), self._model.id_to_token(self.eos)
        copied.post_processor = hf.processors.TemplateProcessing(f"{own_eos} $A", special_tokens=[(own_eos, self.eos)])
        return copied


@tokenizers.register("pretrained", trained=False, reads_folder=True)
def pretrained(
    *,
    path: Annotated[str, "folder of a run, or a folder with transformers' tokenizer.json"] = "",
    eos: Annotated[str | None, "end-of-document token; null: that of the folder"] = None,
) -> Tokenizer:
    """The tokenizer that a model was trained with, unchanged, so that all ids keep their meaning."""
    file = Path(path).expanduser() / "tokenizer.json"
    if not path or not file.is_file():
        raise UserError(
            f"tokenizer.path{f': there is no {file}' if path else ' is empty'}; expected the folder of a run or a model"
            "\n    try: ablatio fetch smollm2"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file} holds a {type(data).__name__}; expected a tokenizer")
    if "state" in data:  # written by a run: name and knobs of the option, and its trained state
        if data["name"] != "pretrained":
            found: Any = tokenizers.build(str(data["name"]), data["knobs"])
            found.restore(data["state"])
            found.trained = False  # it must not be trained again on other documents
            found.made_as = {"name": data["name"], "knobs": data["knobs"]}
            return found
        state = state_of(data["state"])
        data, eos = state["model"], state["eos"]
    try:
        model = hf.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises plain Exceptions for files that it cannot parse
        raise UserError(f"{file} cannot be read as a tokenizer: {error}") from None
    return Fast(model, eos, _answer_end(file.parent), str(file))


def _answer_end(folder: Path) -> str:
    """`eos_token` in tokenizer_config.json, or "".

    In chat models it ends answers, so it serves as end-of-document token only if the tokenizer has none of the usual
    ones.
    """
    path = folder / "tokenizer_config.json"
    token: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
    return str(token.get("content") if isinstance(token, dict) else token or "")
