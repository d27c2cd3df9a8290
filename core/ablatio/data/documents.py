"""Records of the data layer: documents, conversations, feedback, segments of chats, verdicts of filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

Split = Literal["train", "validation"]
Ids = NDArray[Any]  # (n,) of any unsigned integer type


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `split` "": a hash of the text assigns the split, otherwise the source has chosen it."""

    text: str
    id: str
    split: Literal["train", "validation", ""] = ""


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
    ratings: a difference of 400 means odds of ten to one.  `labels` are those of the steps of each answer, its lines:
    1 for a correct step, 0 for a wrong one; empty without labels.  `key` is the text whose hash assigns the split if
    `split` is empty; by default the prompt.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    id: str
    split: Literal["train", "validation", ""] = ""
    elo: bool = False
    key: str = ""
    labels: tuple[tuple[float, ...], ...] = ()

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


@dataclass(frozen=True, slots=True)
class ChatSegment:
    """A segment of a formatted conversation.

    sign    `text` is the name of a special token (one id), not text of a message
    said    the assistant wrote it: fine-tuning computes its loss on these tokens
    weight  factor of that loss: the `weight` of the message
    """

    text: str
    sign: bool = False
    said: bool = False
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A filter's decision on one document.

    text    the text that is kept; None: the document is dropped
    reason  why it is dropped, in a few words that occur for many documents: they are counted
    counts  what was replaced or removed in a text that is kept, by name
    """

    text: str | None
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
