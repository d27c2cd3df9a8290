"""Decoding token by token: the loop of every decode part that keeps one continuation of each text."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ablatio.model.decoding.choices import Choices
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending
from ablatio.model.decoding.logits import MINUS_INFINITY, LogitsProcessors
from ablatio.model.decoding.rollout import look_every
from ablatio.model.decoding.tails import Tail
from ablatio.model.decoding.texts import Texts

Choose = Callable[[Tensor, Sequence[int]], Tensor]  # (logits (R, V), numbers of the texts) -> tokens (R,)
FEW = 0.75  # share of unfinished texts at which copying the cache costs less than further steps on finished ones


def greedy(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """The most likely token of each text."""
    return logits.argmax(-1)


def sampler(job: DecodingJob, warp: Callable[[Tensor], Tensor]) -> Choose:
    """Choose tokens at random, each text from its own stream; `warp` changes the logits first: (R, V) -> same."""
    generators: dict[int, torch.Generator] = {}

    def choose(logits: Tensor, rows: Sequence[int]) -> Tensor:
        chances = warp(logits).softmax(-1)
        for row in rows:
            if row not in generators:
                generators[row] = job.generator(row, logits.device)
        drawn = [torch.multinomial(p, 1, generator=generators[row]) for p, row in zip(chances, rows, strict=True)]
        return torch.cat(drawn)

    return choose


def chooser(job: DecodingJob, processors: LogitsProcessors) -> Choose:
    """Sampling with these processors; temperature 0 takes the most likely token."""
    return greedy if processors.temperature == 0 else sampler(job, processors.warp)


def tails_of(ending: Ending, count: int) -> list[Tail]:
    """The empty continuations of `count` texts."""
    choices = Choices(ending.choices) if ending.choices else None
    return [Tail(ending, choices) for _ in range(count)]


def only_allowed(logits: Tensor, tails: Sequence[Tail]) -> Tensor:
    """Exclude tokens that no choice allows: (R, V) -> same."""
    if not tails or tails[0].choices is None:
        return logits
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, tail in zip(allowed, tails, strict=True):
        row[tail.allowed()] = True
    return logits.masked_fill(~allowed, MINUS_INFINITY)


@torch.no_grad()
def token_by_token(
    job: DecodingJob, processors: LogitsProcessors, choose: Choose, texts: Texts | None = None
) -> list[list[Continuation]]:
    """Continue each prompt once: penalties of `processors`, then `choose`.

    texts  the opened prompts, if they are not those of the job's model alone
    """
    # The last token is drawn and not read.
    texts = job.open(new_tokens=max(0, job.ending.new_tokens - 1)) if texts is None else texts
    tails = tails_of(job.ending, len(job.prompts))
    found: dict[int, Continuation] = {}
    if job.ending.new_tokens == 0:
        return [[tail.finished("length")] for tail in tails]
    rows = list(range(len(tails)))  # numbers of the texts in the batch
    # Choices depend on each token; otherwise a GPU is seldom asked which texts have ended, as each answer waits for it.
    every = 1 if job.ending.choices else look_every(texts.logits.device)
    unread: list[tuple[Tensor, Tensor]] = []
    for drawn in range(1, job.ending.new_tokens + 1):
        logits = processors.penalize(texts.logits, texts.tokens) if processors.penalizes else texts.logits
        tokens = choose(only_allowed(logits, [tails[row] for row in rows]), rows)
        unread.append((tokens, texts.logits.gather(-1, tokens[:, None])[:, 0] - texts.logits.logsumexp(-1)))
        last = drawn == job.ending.new_tokens or texts.full
        if last or len(unread) == every:
            columns = (torch.stack(values).tolist() for values in zip(*unread, strict=True))
            for column in zip(*columns, strict=True):
                for row, token, logprob in zip(rows, *column, strict=True):
                    if row not in found and (ended := tails[row].add(token, logprob)):
                        found[row] = tails[row].finished(ended)
            unread = []
            if last or len(found) == len(tails):
                break
            running = [place for place, row in enumerate(rows) if row not in found]
            if len(running) <= FEW * len(rows):
                kept = torch.tensor(running, device=tokens.device)
                texts.select(kept)
                tokens, rows = tokens[kept], [rows[place] for place in running]
        texts.extend(tokens)
    return [[found.get(row) or tail.finished("length")] for row, tail in enumerate(tails)]
