"""Kinds of data parts: sources, tokenizers and chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ablatio.data.documents import ChatSegment, Conversation, Document, Feedback, Ids, Message


class Source(Protocol):
    """A stream of documents that can be read repeatedly and is the same each time.

    A source may also offer conversations or feedback, for tasks that train on those; its documents are then their
    texts.

    Wiring:
    open_run         open_run(folder) returns the model of a run, to continue texts: see ablatio.training.frozen_model

    Methods:
    documents()      yields the documents (ablatio.data.types.Document), from the first one on
    fingerprint()    a sha256 over the content and the knobs that affect it, but not over its location
    conversations()  optional: yields ablatio.data.types.Conversation
    feedback()       optional: yields ablatio.data.types.Feedback
    parts()          optional: {name: source} of a source that consists of several, for a mixture
    held_out_fingerprint()  optional, of a source whose knobs change its training text alone: a sha256 over the content
                     of its held-out text; runs that agree in it are compared

    Facts:
    combines         True if it consists of several sources: it defines `parts`

    Optional attributes:
    unused_fields    {name: number of records} of the fields that its last pass did not use, for the manifest
    skipped_rows     number of rows that its last pass left out because they cannot be used, for the manifest
    names_splits     False if no document names its split: it is then not read before the first one is used
    """

    combines: ClassVar[bool]

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str: ...


class SourceMethods(Protocol):
    """Optional methods of a Source."""

    def conversations(self) -> Iterator[Conversation]: ...

    def feedback(self) -> Iterator[Feedback]: ...

    def parts(self) -> dict[str, Source]: ...

    def held_out_fingerprint(self) -> str: ...


class Tokenizer(Protocol):
    """Lossless conversion of text to ids and back.

    Attributes:
    vocab_size     number of ids; known before training, because the size of the model depends on it
    eos            id of the token that opens each document in the token stream; no text encodes to it

    Methods:
    train(texts)   learns the vocabulary from the training texts
    encode(texts)  the ids of each text, without eos
    decode(ids)    the text of `ids`
    token_bytes()  number of UTF-8 bytes of each id: (V,); 0 for eos and for ids that training left unused
    state()        the trained state as JSON; equal training gives equal state
    restore(state)  sets the trained state to what `state()` returned

    Optional members of a tokenizer that was made elsewhere:
    bos            id that opens a text in place of eos
    encode_train(texts)  encodes training documents, if they are encoded otherwise than other texts (BPE-dropout)
    encode_joined(groups)  encodes groups of texts, each as one text, and returns the ids of each of its texts
    specials       {name: id} of tokens that no text encodes to, such as a chat template's special tokens
    fast(eos)      the same tokenizer as a `tokenizers.Tokenizer` whose end token is written `eos`, for export
    made_as        the option and knobs that restore it, if they differ from those of the config

    Facts:
    trained        True if it must be trained on the training documents first
    reads_folder   True if its knob `path` is a run or a model
    """

    trained: ClassVar[bool]

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def train(self, texts: Iterable[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> list[Ids]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self) -> NDArray[np.int64]: ...

    def state(self) -> str: ...

    def restore(self, state: str) -> None: ...


class TokenizerMethods(Protocol):
    """Optional methods of a Tokenizer."""

    def encode_train(self, texts: Sequence[str]) -> list[Ids]: ...

    def encode_joined(self, groups: Sequence[Sequence[str]]) -> list[list[Ids]]: ...

    def fast(self, eos: str) -> Any: ...


class Template(Protocol):
    """A chat template: called with the messages of a conversation, it yields the segments of the formatted text.

    With `answering`, the opening of an assistant turn follows the messages, for a model to continue. The segments
    before an answer are the same with and without it.

    Methods:
    __call__(messages, answering)  yields the ablatio.data.chat.ChatSegments of the formatted conversation

    Facts:
    signs  names of the special tokens that it adds to the vocabulary
    end    name of the special token that ends an answer and stops decoding; EOS: the tokenizer's own end token
    tools  True if it writes the tools of a system message, the calls of the assistant and the turns of tools

    Optional attributes:
    jinja  the same template as Jinja source for transformers, where `bos_token` opens a text and `eos_token` is the
           tokenizer's own end token
    """

    signs: ClassVar[Sequence[str]]
    end: ClassVar[str]

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterable[ChatSegment]: ...


sources: Registry[Source] = Registry(
    "source",
    "Where documents, conversations or preference feedback are read from.",
    contract=(Source, SourceMethods),
    wiring=("open_run",),
    methods=("documents", "fingerprint"),
    any_of=("documents", "conversations", "feedback"),
    facts={"combines": False},
    scope="data",
    usual="sotu",
)

tokenizers: Registry[Tokenizer] = Registry(
    "tokenizer",
    "How text is split into token ids.",
    contract=(Tokenizer, TokenizerMethods),
    methods=("train", "encode", "decode", "token_bytes", "state", "restore"),
    facts={"trained": True, "reads_folder": False},
    scope="data",
    usual="bpe",
)

templates: Registry[Template] = Registry(
    "template",
    "How a conversation is written as text: the chat template.",
    contract=(Template,),
    methods=("__call__",),
    facts={"signs": (), "end": "", "tools": False},
    default="plain",
    scope="data",
)
