"""Kinds that use a trained model: decoding and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.model.decoding.job import Continuation, DecodingJob
    from ablatio.model.decoding.logits import LogitsProcessors
    from ablatio.model.prompting.types import Example, Question, Reply, TextModel


class Decode(Protocol):
    """Continues texts with a language model.

    Methods:
    __call__(job)  for each prompt of the DecodingJob (ablatio.model.decoding.job) its Continuations, best first, at
                   least one.  Deterministic in the job; the continuations of a prompt do not depend on the other
                   prompts, and those of row i use only the random stream `job.stream(i)`

    Optional attributes:
    processors     LogitsProcessors, of a part that takes each token from the processed logits of the model alone;
                   policies sample their answers with them

    Facts:
    needs_second_model  True if it needs `job.second`, a model with the same token ids: a draft, an amateur
    samples             True if it draws random numbers; False: the seed has no effect
    beams               True if it compares several continuations of a prompt: all that it returns differ
    """

    needs_second_model: ClassVar[bool]
    samples: ClassVar[bool]
    beams: ClassVar[bool]

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]: ...


class DecodeMethods(Protocol):
    """Optional attributes of a Decode."""

    processors: LogitsProcessors


class Prompt(Protocol):
    """A program that answers a question by calls of a language model.

    Its calls go to a TextModel (ablatio.model.prompting.types), which counts them and their tokens.  Everything random
    is drawn from `llm.random(...)`, so that a reply is a function of the seed, the examples and the question.  Several
    questions are answered at the same time, each in a thread, and their calls are put together in batches: `answer`
    keeps no state between questions.

    Wiring:
    form    ablatio.model.prompting.types.Form: how questions and answers are written
    parse   function of a text that returns the final answer in it, "" if there is none
    verify  function (question, text) -> score of a text as an answer to it, higher is better; None: there is no
            verifier

    Methods:
    answer(llm, examples, question)  the Reply to a Question; `examples` are solved ones, which it may show
    write(llm, examples, question)   optional: the text whose continuation is the answer, for scoring given answers by
                                     their likelihood; "" as the question: what comes before the question
    fit(llm, examples)               optional: called once, before the first question: searches a prompt, finds clusters

    Facts:
    examples       True if it needs at least one example
    uses_examples  False if no example changes its answers; where a knob decides, __init__ sets the attribute
    uses_choices   False if the choices of a question do not change its answers
    rationale      True if it needs examples with a rationale
    samples        True if it draws several answers to a question
    verifies       True if it needs `verify`
    """

    examples: ClassVar[bool]
    uses_examples: bool
    uses_choices: bool
    rationale: ClassVar[bool]
    samples: ClassVar[bool]
    verifies: ClassVar[bool]

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply: ...


class PromptMethods(Protocol):
    """Optional methods of a Prompt."""

    def write(self, llm: TextModel, examples: Sequence[Example], question: Question) -> str: ...

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None: ...


decodes: Registry[Decode] = Registry(
    "decode",
    "How the tokens of a continuation are chosen.",
    contract=(Decode, DecodeMethods),
    methods=("__call__",),
    facts={"needs_second_model": False, "samples": False, "beams": False},
    optional=True,
    scope="use",
)

prompts: Registry[Prompt] = Registry(
    "prompt",
    "How a question is put to a model: a program over its continuations.",
    contract=(Prompt, PromptMethods),
    wiring=("form", "parse", "verify"),
    methods=("answer",),
    any_of=("write", "fit"),
    facts={
        "examples": False,
        "uses_examples": True,
        "uses_choices": True,
        "rationale": False,
        "samples": False,
        "verifies": False,
    },
    optional=True,
    scope="use",
)
