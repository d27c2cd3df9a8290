"""What a source gives and what a tokenizer does: the two contracts of the data layer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation"]
Ids = NDArray[Any]  # of any unsigned integer type


def token_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type of a stored token."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `split` "" means that a hash of the text decides; a source with a rule of its own names the split."""

    text: str
    id: str
    split: Literal["train", "validation", ""] = ""


class Source(Protocol):
    """Documents, as a stream that can be read again from its beginning and is the same each time.

    A source may give conversations or feedback as well, for tasks that learn from those: `conversations()` gives
    Conversation, `feedback()` gives Feedback.  Its documents are then their texts.
    """

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str:
        """sha256 over the content that is read and the knobs that matter; never over where it lies."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, without loss.

    Optional: `specials`, ids by name of tokens that no text encodes to, such as a chat template's signs;
    `fast(eos)`, the same as a `tokenizers.Tokenizer` in which the end is written `eos`, for export; `made_as`, the
    option and knobs that restore it, where they are not those of the config.

    `eos` opens each document in the stream of tokens; no text ever encodes to it. `vocab_size` is known before
    training, so that the size of the model is; ids that training leaves unused stand for 0 bytes.
    """

    trained: ClassVar[bool]  # whether it must see the training documents first

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def train(self, texts: Iterable[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> list[Ids]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self) -> NDArray[np.int64]:
        """(V,) the number of UTF-8 bytes that each id stands for; 0 for eos."""
        ...

    def state(self) -> str:
        """JSON; equal training gives equal state."""
        ...

    def restore(self, state: str) -> None: ...


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, with an answer of the assistant's in the end; `id` says where they come from (a file and its line).

    group  what a cap holds for, in a mixture of several sets
    """

    messages: tuple[Message, ...]
    id: str
    split: Literal["train", "validation", ""] = ""
    group: str = ""

    @property
    def text(self) -> str:
        return "\n\n".join(message.text for message in self.messages)


@dataclass(frozen=True, slots=True)
class Feedback:
    """Answers to one prompt, and how good somebody found them: `scores`, higher is better, equal where nobody decided.

    A pair has the scores (1, 0), a ranking of K minus the ranks, and with `elo` they are ratings: a difference of 400
    means odds of ten to one.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    id: str
    split: Literal["train", "validation", ""] = ""
    elo: bool = False

    @property
    def text(self) -> str:
        return "\n\n".join([*(message.text for message in self.prompt), *self.answers])
