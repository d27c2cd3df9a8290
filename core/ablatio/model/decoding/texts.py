"""A batch of texts that a model continues, with their cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.decoding.token_steps import TokenSteps
from ablatio.model.example import PADDING
from ablatio.model.kv_cache import CacheMark, KVCache
from ablatio.model.matmul_backend import few_rows


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in texts: the state of the cache, the length (with padding) and the logits (R, V)."""

    cache: CacheMark
    length: int
    logits: Tensor


class Texts:
    """Texts of a batch, R at a time: their cache and the logits of their next tokens.

    Shorter prompts are padded on the left; padding forms a separate segment, invisible to all other tokens.

    tokens (R, S)  ids so far, -1 where there is padding
    logits (R, V)  of the next token of each text, float32
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], new_tokens: int = 0) -> None:
        """Read the prompts.  Raises UserError if one of them is empty, longer than the context or has unknown ids.

        new_tokens  the most that `extend` will append, where nothing else appends or takes back; 0: unknown
        """
        self.model, self.steps = model, TokenSteps(model, KVCache(), new_tokens)
        device = next(model.parameters()).device
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        different = list(places)  # each is read once, however often it occurs
        check_prompts(model, different)
        longest = max(map(len, different))
        tokens = torch.tensor([[PADDING] * (longest - len(p)) + list(p) for p in different], dtype=torch.long)
        padded = bool((tokens == PADDING).any())
        segments = torch.where(tokens == PADDING, PADDING, 0).to(device) if padded else None
        self.tokens = tokens.to(device)
        self.logits = model.read(self.tokens.clamp(min=0), segments, self.cache).float()
        if len(different) < len(prompts):
            self.select(torch.tensor([places[tuple(p)] for p in prompts], device=device))

    @property
    def cache(self) -> KVCache:
        """Keys, values and states of all layers."""
        return self.steps.cache

    @property
    def full(self) -> bool:
        """True if the model supports no further token."""
        return not self.fits(1)

    def fits(self, tokens: int) -> bool:
        """True if the model supports so many further tokens."""
        fits: bool = self.model.model.reaches(self.cache.length - self.cache.virtual + tokens)
        return fits

    def log_probs(self) -> Tensor:
        """Log-probabilities of the next tokens under the model: (R, V)."""
        found: Tensor = self.logits.log_softmax(-1)
        return found

    def extend(self, tokens: Tensor) -> None:
        """Append one token to each text: (R,)."""
        self.logits = self.steps.extend(tokens).float()
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)

    def extend_by(self, tokens: Tensor) -> Tensor:
        """Append n tokens to each text, (R, n), in one pass; return the logits after each: (R, n, V)."""
        with few_rows(tokens.numel(), self.model.lm_head.in_features):
            states = self.model.model(tokens, None, self.cache, memory=self.cache.memory)
            found: Tensor = self.model.logits(states).float()
        self.logits = found[:, -1]
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        return found

    def mark(self) -> Mark:
        """Mark this length, so that `keep` can return to it."""
        return Mark(self.cache.mark(), self.tokens.shape[1], self.logits)

    def keep(self, mark: Mark, tokens: Tensor, count: int) -> None:
        """Forget what was appended since the mark, `tokens` (R, n), except the first `count` of it.

        Append a token before using the logits: those after the kept tokens are not kept.
        """
        if count == tokens.shape[1]:
            return
        self.tokens, self.logits = self.tokens[:, : mark.length + count], mark.logits
        if not self.cache.rewind(mark.cache, count) and count:
            self.tokens = self.tokens[:, : mark.length]
            self.extend_by(tokens[:, :count])  # layers with a state have to read them again

    def select(self, rows: Tensor) -> None:
        """Keep the texts `rows` (N,), in this order; a text may occur several times."""
        self.steps.select(rows)
        self.tokens, self.logits = self.tokens[rows], self.logits[rows]


def check_prompts(model: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Raise UserError if a prompt is empty, has unknown ids or is longer than the context."""
    if not all(map(len, prompts)):
        empty = next(i for i, p in enumerate(prompts) if not len(p))
        raise UserError(
            f"prompt {empty} has no token; expected at least the one that opens a text\n    try: [tokenizer.eos]"
        )
    unknown = [i for p in prompts for i in p if not 0 <= i < model.vocab_size]
    if unknown:
        raise UserError(
            f"a prompt has the token id {unknown[0]}; expected ids from 0 to {model.vocab_size - 1}\n"
            "    try: the ids of the run's own tokenizer"
        )
    longest = max(map(len, prompts))
    if not model.model.reaches(longest):
        raise UserError(
            f"a prompt has {longest} tokens, and this model's position supports at most model.max_len="
            f"{model.model.max_len}\n    try: a shorter prompt, or a run with position=rope"
        )
