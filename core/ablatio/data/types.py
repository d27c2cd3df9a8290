"""Contracts of the data layer: documents, sources, tokenizers, conversations and feedback."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation"]
Ids = NDArray[Any]  # (n,) of any unsigned integer type


def token_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest dtype that holds every id: uint16 up to 65536 ids, else uint32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `split` "": a hash of the text assigns the split, otherwise the source has chosen it."""

    text: str
    id: str
    split: Literal["train", "validation", ""] = ""


class Source(Protocol):
    """A stream of documents that can be read repeatedly and is the same each time.

    A source may also offer `conversations()`, yielding Conversation, or `feedback()`, yielding Feedback, for tasks that
    train on those; its documents are then their texts.  Optional: `unused_fields`, {name: number of records} of the
    fields that its last pass did not use, for the manifest.
    """

    def documents(self) -> Iterator[Document]:
        """Yield the documents, from the first one on."""
        ...

    def fingerprint(self) -> str:
        """Return a sha256 over the content and the knobs that affect it, but not over its location."""
        ...


class Tokenizer(Protocol):
    """Lossless conversion of text to ids and back.

    Optional members of a tokenizer that was made elsewhere: `bos`, id that opens a text in place of eos, and
    `encode_joined`, which encodes groups of texts, each as one text, and returns the ids of each of its texts.

    Optional members: `specials`, {name: id} of tokens that no text encodes to, such as a chat template's special
    tokens; `fast(eos)`, the same tokenizer as a `tokenizers.Tokenizer` whose end token is written `eos`, for export;
    `made_as`, the option and knobs that restore it, if they differ from those of the config.
    """

    trained: ClassVar[bool]  # True if it must be trained on the training documents first

    @property
    def vocab_size(self) -> int:
        """Number of ids; known before training, because the size of the model depends on it."""
        ...

    @property
    def eos(self) -> int:
        """Id of the token that opens each document in the token stream; no text encodes to it."""
        ...

    def train(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the training texts."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, without eos."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""
        ...

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the number of UTF-8 bytes of each id: (V,); 0 for eos and for ids that training left unused."""
        ...

    def state(self) -> str:
        """Return the trained state as JSON; equal training gives equal state."""
        ...

    def restore(self, state: str) -> None:
        """Set the trained state to what `state()` returned."""
        ...


Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; the turn of a tool is the result of a call.

    text    empty only beside `calls` or `tools`, or as the result of a tool
    weight  factor of the loss on this turn of the assistant; 0: no loss
    calls   tool calls of the assistant, each as JSON: {"name": ..., "arguments": {...}}
    tools   definitions of the tools that a system message offers, each as JSON
    """

    role: Role
    text: str
    weight: float = 1.0
    calls: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """The text and the tool calls, each on a line of its own."""
        return "\n".join([*([self.text] if self.text else []), *self.calls])


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of which the last is an answer of the assistant; `id` names their origin (a file and its line).

    group  the data set it belongs to in a mixture; a cap holds per group
    key    text whose hash assigns the split if `split` is empty; by default the first question
    """

    messages: tuple[Message, ...]
    id: str
    split: Literal["train", "validation", ""] = ""
    group: str = ""
    key: str = ""

    @property
    def text(self) -> str:
        """All messages with their tools and calls, separated by blank lines."""
        return _joined(self.messages)

    @property
    def split_key(self) -> str:
        """The text whose hash assigns the split: equal first questions get the same one."""
        return self.key or next(m.text for m in self.messages if m.role == "user")


@dataclass(frozen=True, slots=True)
class Feedback:
    """Answers to one prompt with their scores: higher is better, equal means undecided.

    A preference pair has the scores (1, 0), a ranking of K answers the negated ranks; with `elo` the scores are Elo
    ratings: a difference of 400 means odds of ten to one.  `key` is the text whose hash assigns the split if `split` is
    empty; by default the prompt.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    id: str
    split: Literal["train", "validation", ""] = ""
    elo: bool = False
    key: str = ""

    @property
    def text(self) -> str:
        """Prompt and all answers, separated by blank lines."""
        return "\n\n".join([_joined(self.prompt), *self.answers])

    @property
    def split_key(self) -> str:
        """The text whose hash assigns the split: equal prompts get the same one."""
        return self.key or _joined(self.prompt)


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(part for m in messages for part in (*m.tools, m.content) if part)


def start_id(tokenizer: Tokenizer) -> int:
    """Return the id that opens each text: the tokenizer's own bos where it puts one there, else its eos."""
    return int(getattr(tokenizer, "bos", tokenizer.eos))
