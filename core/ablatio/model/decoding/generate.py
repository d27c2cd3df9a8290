"""Continuations of token ids, texts and conversations."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ablatio.data.chat import Template, sign_id, write
from ablatio.data.types import Message, Tokenizer, start_id
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.language_model import LanguageModel

log = logging.getLogger("ablatio")
Decode = Callable[[DecodingJob], Sequence[Sequence[Continuation]]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings: temperature 0 takes the most likely token; top_k 0 and top_p 1 keep all tokens."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        _ = self.processors  # refuses values that are not allowed

    @property
    def processors(self) -> LogitsProcessors:
        """The settings without the seed."""
        return LogitsProcessors(self.temperature, self.top_k, self.top_p)

    def __call__(self, job: DecodingJob) -> list[list[Continuation]]:
        """Continue each prompt once."""
        return token_by_token(job, self.processors, chooser(job, self.processors))


@dataclass(frozen=True, slots=True)
class Request:
    """How texts are to be continued.

    decode   a decode part, or Sampling
    stop     strings that end a text
    choices  texts of which a continuation must be one
    second   second model, for decode parts that need one
    judge    scores of continuations, for decode parts that use them: (prompt, texts, token ids) -> one number each
    """

    new_tokens: int
    decode: Decode
    seed: int = 1
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    second: Any = None
    judge: Callable[[str, Sequence[str], Sequence[Sequence[int]]], Sequence[float]] | None = None

    def run(
        self, model: LanguageModel, tokenizer: Tokenizer, rows: Sequence[Sequence[int]], stop_ids: tuple[int, ...]
    ) -> list[list[str]]:
        """Return the texts of the continuations of each row of token ids, best first."""

        def text_of(ids: Sequence[int]) -> str:  # ids beyond the tokenizer's (sentinels) have no text
            return tokenizer.decode([i for i in ids if i < tokenizer.vocab_size])

        def judge(row: int, found: Sequence[Sequence[int]]) -> Sequence[float]:
            assert self.judge is not None
            return self.judge(text_of(rows[row][1:]), [text_of(ids) for ids in found], found)

        choices = tuple(tuple(map(int, ids)) for ids in tokenizer.encode(list(self.choices)))
        ending = Ending(self.new_tokens, stop_ids, self.stop, text_of, choices)
        job = DecodingJob(model, rows, ending, self.second, judge if self.judge else None, self.seed)
        found = self.decode(job)
        self._tell_what_did_not_end([c for continuations in found for c in continuations])
        return [[text_of(c.ids) if c.text is None else c.text for c in continuations] for continuations in found]

    def _tell_what_did_not_end(self, found: Sequence[Continuation]) -> None:
        unended = sum(c.finished == "length" for c in found) if self.stop else 0
        if unended:
            log.warning(
                "no stop string (%s) came within %d tokens in %d of %d texts",
                ", ".join(map(repr, self.stop)), self.new_tokens, unended, len(found),
            )  # fmt: skip


def complete(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], request: Request) -> list[list[str]]:
    """Return each prompt with its continuations, best first; a text ends at its end-of-document token."""
    start = start_id(tokenizer)
    rows = [[start, *map(int, ids)] for ids in tokenizer.encode(list(prompts))]
    stop_ids = tuple(dict.fromkeys((tokenizer.eos, start)))  # the start of another document ends this one, too
    found = request.run(model, tokenizer, rows, stop_ids)
    return [[tokenizer.decode(row[1:]) + text for text in texts] for row, texts in zip(rows, found, strict=True)]


def answer(
    model: LanguageModel,
    tokenizer: Tokenizer,
    template: Template,
    conversations: Sequence[Sequence[Message]],
    request: Request,
) -> list[list[str]]:
    """Return the model's answers to each conversation, best first, up to the template's end token."""
    rows = [written.ids.tolist() for written in write(tokenizer, template, conversations, answering=True)]
    found = request.run(model, tokenizer, rows, (sign_id(tokenizer, template.end),))
    return [[text.strip() for text in texts] for texts in found]


def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling, stop: int | None = None
) -> list[list[int]]:
    """Return up to `new_tokens` generated ids for each prompt, without `stop`; prompts may differ in length."""
    ending = Ending(new_tokens, () if stop is None else (stop,))
    return [found[0].ids for found in sampling(DecodingJob(model, prompts, ending, seed=sampling.seed))]
