"""Batched decoding with the KV cache: one pass over the prompts, then one step per token for the whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.data.chat import Template, sign_id, write
from ablatio.data.types import Message, Tokenizer, start_id
from ablatio.errors import UserError
from ablatio.model.example import PADDING
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings: temperature 0 takes the most likely token; top_k 0 and top_p 1 keep all tokens."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature={self.temperature}, top-k={self.top_k}, top-p={self.top_p}; expected temperature >= 0, "
                "top-k >= 0, 0 < top-p <= 1\n    try: --temperature 0.8 --top-k 0 --top-p 0.95"
            )


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


@torch.no_grad()
def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling, stop: int | None = None
) -> list[list[int]]:
    """Return up to `new_tokens` generated ids for each prompt, without `stop`; prompts may differ in length.

    Shorter prompts are padded on the left; padding forms a separate segment, invisible to all other tokens.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    segments = torch.full_like(tokens, PADDING)
    for i, prompt in enumerate(prompts):
        tokens[i, longest - len(prompt) :] = torch.tensor(list(prompt))
        segments[i, longest - len(prompt) :] = 0
    packed = segments.to(device) if bool((segments == PADDING).any()) else None
    generator = torch.Generator(device).manual_seed(sampling.seed)
    cache, step = KVCache(), tokens.to(device)
    generated: list[list[int]] = [[] for _ in prompts]
    running, started = torch.ones(len(prompts), dtype=torch.bool), False  # rows without `stop` so far
    for _ in range(new_tokens):
        logits = model.extend(step, cache) if started else model.read(step, packed, cache)
        started = True
        chosen = pick(logits, sampling, generator)
        for i, token in enumerate(chosen.tolist()):
            if running[i] and token != stop:
                generated[i].append(token)
            else:
                running[i] = False
        if not bool(running.any()):
            break
        step = chosen[:, None]
    return generated


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Choose the next token of each row from its logits: (B, V) -> (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits.sort(descending=True)
        mass = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the more likely tokens
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, mass >= sampling.top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
