"""The tokenizer of an existing model: of a run, of a folder that transformers wrote, or a file of any library."""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio import tokenizers
from ablatio.data.types import Ids, Tokenizer, token_type
from ablatio.errors import AblatioError, DamagedFile, UserError
from ablatio.storage.json_files import damaged, read_object, read_object_if_any
from ablatio.storage.paths import shell_word
from ablatio_std.tokenizers._chunks import ByChunks, has_words_of_gpt2
from ablatio_std.tokenizers._common import BYTE_OF, state_of, text_of
from ablatio_std.tokenizers._sentencepiece import SentencePiece

HINT = "\n    try: ablatio fetch smollm2"
_AT_ONCE = 64  # texts per batch: the library keeps over a hundred bytes of memory per token
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")  # end-of-document tokens tried in this order
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # SentencePiece's notation of a byte that is not a whole character


class Fast:
    """A tokenizer of the tokenizers library; text that looks like a special token is encoded as ordinary text.

    specials   ids of the special tokens by name, for chat templates
    bos        id that opens a text: the token that the tokenizer itself puts there, or else its end-of-document token
    closes     True if the tokenizer ends each text with its end-of-document token (T5)
    """

    trained = False

    def __init__(
        self, model: hf.Tokenizer, eos: str | None, answer_end: str, where: str, adds: Mapping[str, str | None]
    ) -> None:
        before, after = _added_tokens(model)
        # Text of a user must not become a special token by its spelling.
        model.encode_special_tokens = True
        model.no_truncation()
        model.no_padding()
        self._model = model
        added = model.get_added_tokens_decoder()
        self.specials = {token.content: i for i, token in added.items() if token.special}
        # The largest id and not the number of tokens: ids may have gaps.
        self.vocab_size = max(max(model.get_vocab().values()), max(added, default=0)) + 1
        names = [eos] if eos else [*_ENDS, answer_end, *self.specials]
        found = [model.token_to_id(name) for name in names if model.token_to_id(name) is not None]
        if not found:
            raise UserError(
                f"{where}: there is no token {eos!r} to end documents with; its special tokens are "
                f"{', '.join(list(self.specials)[:8]) or 'none'}\n    try: tokenizer.eos=..."
            )
        self.eos = int(found[0])
        own = model.token_to_id(adds["bos"]) if adds.get("bos") else None  # of tokenizer_config.json or a saved state
        self.bos = int(own if own is not None else before[0] if before and "bos" not in adds else self.eos)
        self.closes = bool(after) and after[-1] == self.eos
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
        if self._chunks:
            return self._chunks(texts)
        dtype, found = token_type(self.vocab_size), list[Ids]()
        for start in range(0, len(texts), _AT_ONCE):
            encoded = self._model.encode_batch_fast(list(texts[start : start + _AT_ONCE]), add_special_tokens=False)
            found += [np.array(result.ids, dtype=dtype) for result in encoded]
        return found

    def encode_joined(self, groups: Sequence[Sequence[str]]) -> list[list[Ids]]:
        """Encode the texts of each group as one text; return the ids of each of them.

        As the text between two special tokens of a conversation, which is not the beginning of a text. Where a token
        would belong to two texts of a group, so that an answer would begin inside it, they are encoded one by one.
        """
        found = list[list[Ids]]()
        for start in range(0, len(groups), _AT_ONCE):
            part = groups[start : start + _AT_ONCE]
            encoded = self._inside.encode_batch(["".join(group) for group in part], add_special_tokens=False)
            found += [self._split(group, result) for group, result in zip(part, encoded, strict=True)]
        return found

    def _split(self, group: Sequence[str], encoded: hf.Encoding) -> list[Ids]:
        """Ids of each text of a group that was encoded as one text."""
        if not "".join(group):  # some normalizers would make a token of nothing
            return [np.zeros(0, dtype=token_type(self.vocab_size)) for _ in group]
        ids, places = np.array(encoded.ids, dtype=token_type(self.vocab_size)), np.array(encoded.offsets)
        borders = np.cumsum([len(text) for text in group])[:-1, None]
        if bool(((places[:, 0] < borders) & (borders < places[:, 1])).any()):
            return [self._split([text], self._inside.encode(text, add_special_tokens=False))[0] for text in group]
        # A token belongs to the text that it begins in.
        return np.split(ids, np.searchsorted(places[:, 0], borders[:, 0]))

    @functools.cached_property
    def _chunks(self) -> ByChunks | None:
        """An encoder that is several times as fast, where it gives the same ids."""
        return ByChunks(self._model, self.token_bytes()) if has_words_of_gpt2(self._model) else None

    @functools.cached_property
    def _inside(self) -> hf.Tokenizer:
        """The model for a text in the middle of another one: with no space in front where only a beginning gets one."""
        data = json.loads(self._model.to_str())
        steps = data.get("pre_tokenizer") or {}
        first = [s for s in (steps, *steps.get("pretokenizers", ())) if s.get("prepend_scheme") == "first"]
        if not first:
            return self._model
        for step in first:
            step["prepend_scheme"] = "never"
        made = hf.Tokenizer.from_str(json.dumps(data))
        made.encode_special_tokens = True
        return made

    def decode(self, ids: Sequence[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self._table], dtype=np.int64)

    def state(self) -> str:
        eos = self._model.id_to_token(self.eos)
        bos = {} if self.bos == self.eos else {"bos": self._model.id_to_token(self.bos)}
        return json.dumps({"tokenizer": "pretrained", "eos": eos, **bos, "model": json.loads(self._model.to_str())})

    def restore(self, state: str) -> None:
        saved, own = state_of(state), state_of(self.state())
        bos, own_bos = saved.pop("bos", None), own.pop("bos", None)
        if saved != own or bos not in (None, own_bos):
            raise DamagedFile("the saved state is not that of tokenizer=pretrained with this folder")
        # Before a tokenizer's own bos was used, texts began with eos: such a run goes on as it began.
        self.bos = self.eos if bos is None else int(self._model.token_to_id(bos))

    def fast(self, eos: str) -> hf.Tokenizer:
        """A copy that puts the token in front of each text (its own, not `eos`) that it has there in training."""
        copied, start = hf.Tokenizer.from_str(self._model.to_str()), self._model.id_to_token(self.bos)
        if not self.closes:
            adds = [(start, self.bos)]
            copied.post_processor = hf.processors.TemplateProcessing(f"{start} $A", special_tokens=adds)
        return copied


@tokenizers.register("pretrained", trained=False, reads_folder=True)
def pretrained(
    *,
    path: Annotated[
        str, "folder of a run, folder with transformers' tokenizer.json, such a file, or a SentencePiece .model file"
    ] = "",
    eos: Annotated[str | None, "end-of-document token; null: that of the folder"] = None,
) -> Tokenizer:
    """The tokenizer that a model was trained with, unchanged, so that all ids keep their meaning.

    Of a folder `tokenizer.json` is read, or else `tokenizer.model`, a SentencePiece model; a file by its ending.
    Some of these tokenizers normalize the text: what comes back is the normalized one.
    """
    place = Path(path).expanduser()
    file = place if place.is_file() else place / "tokenizer.json"
    pieces = file if file.suffix == ".model" else file.with_name("tokenizer.model")
    if path and not (file.is_file() and file.suffix != ".model") and pieces.is_file():
        model = SentencePiece.read(pieces).tokenizer()
        return Fast(model, eos, _answer_end(pieces.parent), str(pieces), _added_by_config(pieces.parent))
    if not path or not file.is_file():
        raise UserError(
            f"tokenizer.path{f': there is no {file}' if path else ' is empty'}; expected the folder of a run or a "
            "model, or a file tokenizer.json or tokenizer.model"
            f"{HINT}"
        )
    try:
        with damaged(str(file), "a tokenizer"):
            return _read(file, eos)
    except (DamagedFile, UserError) as error:  # of the file, or of the tokenizer's knobs or state in it
        where = "" if str(file.parent) in str(error) else f"{file}: "
        # Beside the folder of a run there may be other runs, whose tokenizers can be used.
        hint = f"\n    try: ablatio runs {shell_word(file.absolute().parents[1])}" if _is_run(file.parent) else HINT
        raise UserError(f"{where}{error}{'' if 'try: ' in str(error) else hint}") from None


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _read(file: Path, eos: str | None) -> Tokenizer:
    """The tokenizer in a JSON file of a run, of transformers or of the library tokenizers; else DamagedFile."""
    data = read_object(file, {"state": str, "name": str, "knobs": dict})
    adds = _added_by_config(file.parent)
    if "state" in data:  # written by a run: name and knobs of the option, and its trained state
        if data["name"] != "pretrained":
            found: Any = tokenizers.build(data["name"], data["knobs"])
            found.restore(data["state"])
            found.trained = False  # it must not be trained again on other documents
            found.made_as = {"name": data["name"], "knobs": data["knobs"]}
            return found  # type: ignore[no-any-return]
        state = state_of(data["state"])
        data, eos, adds = state["model"], state["eos"], {"bos": state.get("bos")}
    end = _answer_end(file.parent)
    try:
        return Fast(hf.Tokenizer.from_str(json.dumps(data)), eos, end, str(file), adds)
    except AblatioError:
        raise
    except Exception as error:  # the library raises plain Exceptions for what it cannot parse or use
        raise UserError(f"{file} cannot be read as a tokenizer: {error}{HINT}") from None


def _added_tokens(model: hf.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text by itself."""
    # Asked of the tokenizer itself: post-processors say it in many forms.
    plain, whole = (model.encode("a", add_special_tokens=added).ids for added in (False, True))
    places = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    return (whole[: places[0]], whole[places[0] + len(plain) :]) if places else ([], [])


def _added_by_config(folder: Path) -> dict[str, str | None]:
    """{"bos": its name, or None} if tokenizer_config.json says whether bos is added; {} if it does not say."""
    data = read_object_if_any(folder / "tokenizer_config.json")
    if not isinstance(data.get("add_bos_token"), bool):
        return {}
    token = data.get("bos_token")
    name = token.get("content") if isinstance(token, dict) else token
    return {"bos": name if data["add_bos_token"] else None}


def _answer_end(folder: Path) -> str:
    """`eos_token` in tokenizer_config.json, or "".

    In chat models it ends answers, so it serves as end-of-document token only if the tokenizer has none of the usual
    ones.
    """
    token = read_object_if_any(folder / "tokenizer_config.json").get("eos_token")
    return str(token.get("content") if isinstance(token, dict) else token or "")
