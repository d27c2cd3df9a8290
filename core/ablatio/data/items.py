"""Items of an evaluation, the requests that a metric sends to a model, and the model's responses."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablatio.data.documents import Split

STOP = ("\n",)


@dataclass(frozen=True, slots=True)
class Item:
    """One question of an evaluation, or one whole text.

    id          unique within its evaluation
    prompt      text before the answer; empty: the answer is a whole text
    target      the correct answer; None: there is none
    choices     possible answers of a multiple-choice question
    gold        index of the correct choice; None: there are no choices
    delimiter   text between prompt and answer
    references  further correct answers
    cluster     items of one cluster (questions about one passage) are not independent of each other; empty: the item
                is a cluster of its own
    question    the question alone, without examples and instructions; empty: the prompt
    stop        texts at which a generated answer ends
    room        largest number of tokens of a generated answer
    rationale   the steps to the correct answer, which a prompt program may show; empty: they are not known
    more        further fields, such as the tests of a program
    """

    id: str
    prompt: str = ""
    target: str | None = None
    choices: tuple[str, ...] = ()
    gold: int | None = None
    delimiter: str = " "
    references: tuple[str, ...] = ()
    cluster: str = ""
    question: str = ""
    stop: tuple[str, ...] = STOP
    room: int = 64
    more: Mapping[str, Any] = field(default_factory=dict)
    # Not part of the digest of an evaluation, which is made of `repr`: it is shown with other items alone.
    rationale: str = field(default="", repr=False)

    @property
    def correct(self) -> str | None:
        """The correct answer as a text: the target, or the correct choice."""
        return self.target if self.target is not None else self.choices[self.gold] if self.gold is not None else None

    @property
    def correct_answers(self) -> tuple[str, ...]:
        """All correct answers."""
        return (() if self.correct is None else (self.correct,)) + self.references

    def continued(self, answer: str) -> str:
        """The text that follows the prompt if this is the answer."""
        return (self.delimiter if self.prompt else "") + answer

    @property
    def digest(self) -> str:
        """First digits of a sha256 of what is asked, by which two runs know that they answered the same item."""
        # Not the id: two versions of a benchmark may number other questions alike.
        parts = (self.prompt, self.delimiter, str(self.correct), *self.choices)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]

    def has(self, label: str) -> bool:
        """True if the item has this label: `target` (a correct answer as a text), `choices`, or another field."""
        if label == "target":
            return self.correct is not None
        return (bool(self.choices) and self.gold is not None) if label == "choices" else label in self.more


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Asks how probable `continuation` is after `context`; an empty context is the beginning of a document."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Generation:
    """Asks for `samples` continuations of `prompt`, each up to a text of `stop` or `tokens` tokens.

    temperature  0: the most probable token at each step
    seed         of the samples, together with the prompt
    """

    prompt: str
    stop: tuple[str, ...] = STOP
    tokens: int = 64
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, item: Item) -> "Generation":
        """The most probable answer to an item."""
        return cls(item.prompt, item.stop, item.room)


Request = Likelihood | Generation


@dataclass(frozen=True, slots=True)
class Response:
    """A model's response to one request.

    logps   log-probability in nats of each token of the continuation
    greedy  True if each of its tokens is the most probable one
    bytes   number of UTF-8 bytes of the continuation
    texts   the sampled continuations
    """

    logps: tuple[float, ...] = ()
    greedy: bool = False
    bytes: int = 0
    texts: tuple[str, ...] = ()

    @property
    def logp(self) -> float:
        """Log-probability of the whole continuation, in nats."""
        # Exact, so that the order of summing does not decide which of two choices is the more probable.
        return math.fsum(self.logps)


@dataclass(frozen=True, slots=True)
class Scored:
    """An item with the model's responses and the values of a metric."""

    item: Item
    responses: Sequence[Response]
    values: Mapping[str, float]


Texts = Callable[[Split], Iterator[str]]  # the texts of one split of a source
Respond = Callable[[Sequence[Request]], list[Response]]
OpenRun = Callable[[str], Respond]  # the responses of the model in a run folder
