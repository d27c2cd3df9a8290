"""Sampled continuations of token ids, texts and conversations."""

from collections.abc import Sequence
from dataclasses import dataclass

from ablatio.data.chat import Template, sign_id, write
from ablatio.data.types import Message, Tokenizer, start_id
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings: temperature 0 takes the most likely token; top_k 0 and top_p 1 keep all tokens."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    @property
    def processors(self) -> LogitsProcessors:
        """The settings without the seed."""
        return LogitsProcessors(self.temperature, self.top_k, self.top_p)


def complete(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], new_tokens: int, sampling: Sampling
) -> list[str]:
    """Return each prompt with its continuation; a text ends at its end-of-document token."""
    start = start_id(tokenizer)
    rows = [[start, *map(int, ids)] for ids in tokenizer.encode(list(prompts))]
    texts = []
    for row, new in zip(rows, generate(model, rows, new_tokens, sampling, stop=tokenizer.eos), strict=True):
        new = new[: new.index(start)] if start in new else new  # the start of another document ends this one, too
        text = [
            i for i in (*row[1:], *new) if i < tokenizer.vocab_size
        ]  # ids beyond the tokenizer's (sentinels) have no text
        texts.append(tokenizer.decode(text))
    return texts


def answer(
    model: LanguageModel,
    tokenizer: Tokenizer,
    template: Template,
    conversations: Sequence[Sequence[Message]],
    new_tokens: int,
    sampling: Sampling,
) -> list[str]:
    """Return the model's answer to each conversation, up to the template's end token."""
    rows = [written.ids.tolist() for written in write(tokenizer, template, conversations, answering=True)]
    stop = sign_id(tokenizer, template.end)
    answers = generate(model, rows, new_tokens, sampling, stop)
    return [tokenizer.decode([i for i in ids if i < tokenizer.vocab_size]).strip() for ids in answers]


def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling, stop: int | None = None
) -> list[list[int]]:
    """Return up to `new_tokens` generated ids for each prompt, without `stop`; prompts may differ in length."""
    ending = Ending(new_tokens, () if stop is None else (stop,))
    job = DecodingJob(model, prompts, ending, seed=sampling.seed)
    return [found[0].ids for found in token_by_token(job, sampling.processors, chooser(job, sampling.processors))]
