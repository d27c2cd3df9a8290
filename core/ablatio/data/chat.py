"""Conversations as tokens: a template's signs become ids of their own, and it is known which tokens were said."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ablatio.data.types import Ids, Message, Tokenizer, token_type
from ablatio.errors import UserError

EOS = ""  # the name of the sign that opens and ends documents; each tokenizer has it


@dataclass(frozen=True, slots=True)
class ChatSegment:
    """A part of a conversation as it is written.

    sign  the text names a sign, which is one token, and no text of people's
    said  the assistant says it: the loss of fine-tuning stands here
    """

    text: str
    sign: bool = False
    said: bool = False


class Template(Protocol):
    """The form in which a conversation is written; called with its messages.

    signs  names of tokens of its own
    end    the sign that ends an answer, with which decoding stops; EOS: the tokenizer's own end

    jinja  optional: the same form as transformers writes it, `bos_token` and `eos_token` being the tokenizer's own sign

    With `answering`, the beginning of an answer is written behind the messages, for a model to go on.  What is written
    up to an answer is the same with and without it.
    """

    signs: ClassVar[Sequence[str]]
    end: ClassVar[str]

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterable[ChatSegment]: ...


class SpecialTokenTokenizer:
    """A tokenizer with a template's signs behind its own ids; a sign that it knows already keeps its id.

    No text encodes to a sign: what people write can never open a turn.
    """

    def __init__(self, base: Tokenizer, signs: Sequence[str]) -> None:
        known: dict[str, int] = dict(getattr(base, "specials", {}))
        added = [sign for sign in signs if sign not in known]
        self.base, self.trained, self.eos = base, type(base).trained, base.eos
        self.specials = known | {sign: base.vocab_size + i for i, sign in enumerate(added)}
        self.vocab_size = base.vocab_size + len(added)
        self._added = added

    def __getattr__(self, name: str) -> Any:
        if name == "base":
            raise AttributeError(name)
        found = getattr(self.base, name)
        return functools.partial(self._fast, found) if name == "fast" else found

    def _fast(self, of_base: Callable[[str], Any], eos: str) -> Any:
        """The base's own form in the terms of the tokenizers library, with the signs at their ids."""
        made = of_base(eos)
        data = json.loads(made.to_str())
        data["model"]["vocab"] |= {sign: self.specials[sign] for sign in self._added}
        found = type(made).from_str(json.dumps(data))
        found.add_special_tokens(self._added)
        return found

    def train(self, texts: Iterable[str]) -> None:
        self.base.train(texts)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return self.base.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The signs that were added stand for no text."""
        return self.base.decode([i for i in ids if i < self.base.vocab_size])

    def token_bytes(self) -> NDArray[np.int64]:
        return np.concatenate([self.base.token_bytes(), np.zeros(len(self._added), dtype=np.int64)])

    def state(self) -> str:
        return self.base.state()

    def restore(self, state: str) -> None:
        self.base.restore(state)


def with_special_tokens(tokenizer: Tokenizer, template: Template) -> Tokenizer:
    """The tokenizer, able to hold what the template writes; the same object where nothing is lacking."""
    known = getattr(tokenizer, "specials", {})
    if all(sign in known for sign in template.signs):
        return tokenizer
    made: Any = SpecialTokenTokenizer(
        tokenizer, template.signs
    )  # `trained` is that of its base, and no constant of the class
    return cast(Tokenizer, made)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """ids of a conversation, the sign that opens a document first; which of them were said.  Both (n,)."""

    ids: Ids
    said: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


def write(
    tokenizer: Tokenizer, template: Template, conversations: Sequence[Sequence[Message]], answering: bool = False
) -> list[Written]:
    """Each conversation in the template's form."""
    pieces = [list(template(messages, answering)) for messages in conversations]
    texts = list(dict.fromkeys(p.text for found in pieces for p in found if not p.sign))
    ids = dict(zip(texts, tokenizer.encode(texts), strict=True)) if texts else {}
    dtype = token_type(tokenizer.vocab_size)

    def joined(found: list[ChatSegment]) -> Written:
        parts = [np.array([tokenizer.eos], dtype=dtype)]
        said = [np.zeros(1, dtype=bool)]
        for piece in found:
            part = np.array([sign_id(tokenizer, piece.text)]) if piece.sign else ids[piece.text]
            parts.append(part.astype(dtype))
            said.append(np.full(len(part), piece.said))
        return Written(np.concatenate(parts), np.concatenate(said))

    return [joined(found) for found in pieces]


def sign_id(tokenizer: Tokenizer, sign: str) -> int:
    """The id of a sign by its name."""
    if sign == EOS:
        return tokenizer.eos
    known: dict[str, int] = getattr(tokenizer, "specials", {})
    if sign not in known:
        raise UserError(
            f"the template writes {sign!r}, and tokenizer {type(tokenizer).__name__} has no such token\n"
            "    try: template=plain"
        )
    return known[sign]


def truncate_to_length(written: Written, length: int, too_long: str, where: str, ahead: int = 1) -> Written | None:
    """At most `length` + `ahead` tokens: `cut` takes the beginning of the prompt away, `drop` gives None, `refuse`
    raises.  ahead: tokens that take no place in a row, since they are said and not read.

    An answer that does not fit by itself is never cut: it would teach to end in the middle.
    """
    room = length + ahead
    if len(written) <= room:
        return written
    if too_long == "refuse":
        raise UserError(
            f"{where}: {len(written)} tokens came, and a row takes {length}{f' + {ahead}' if ahead else ''}\n"
            f"    try: model.max_len={len(written) - ahead}, or task.too_long=cut"
        )
    first = len(written) - room + 1  # one place is for the sign that opens the row
    kept = Written(np.concatenate([written.ids[:1], written.ids[first:]]), np.append(False, written.said[first:]))
    whole = bool(written.said[first:].any()) and not written.said[first]
    return kept if too_long == "cut" and whole else None
