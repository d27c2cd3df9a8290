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
    """Documents, as a stream that can be read again from its beginning and is the same each time."""

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str:
        """sha256 over the content that is read and the knobs that matter; never over where it lies."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, without loss.

    Optional: `fast(eos)`, the same as a `tokenizers.Tokenizer` in which the end is written `eos`, for export;
    `made_as`, the option and knobs that restore it, where they are not those of the config.

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
