"""Logits processors: penalties for what a text holds, temperature, and truncation of the distribution."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.example import PADDING
from ablatio.registry.knobs import NonNegative, Positive, Range

MINUS_INFINITY = float("-inf")

# Types of knobs for parts that take these settings, with the help that they share.
Temperature = Annotated[float, NonNegative, "divisor of the logits; 0 takes the most likely token"]
TopK = Annotated[int, NonNegative, "sample from the k most likely tokens; 0: from all"]
TopP = Annotated[float, Range(1e-6, 1), "sample from the most likely tokens that together have this probability"]
MinP = Annotated[float, Range(0, 1), "leave out tokens with less than this share of the largest probability"]
Typical = Annotated[float, Range(1e-6, 1), "sample from the most typical tokens that together have this probability"]
Repetition = Annotated[
    float, Positive, "divisor of the positive logits, factor of the negative ones, of earlier tokens"
]
NoRepeatNgram = Annotated[int, NonNegative, "no sequence of n tokens occurs twice; 0: any may"]


@dataclass(frozen=True, slots=True)
class LogitsProcessors:
    """Settings that change the logits z (R, V) of the next tokens; the defaults change nothing.

    Penalties, which also hold for searches:
        repetition       z / repetition if z > 0, else z * repetition, for tokens of the text (arXiv:1909.05858)
        no_repeat_ngram  -inf for a token that would complete n tokens which the text already holds (arXiv:1705.04304)
    Then, for sampling, in this order:
        temperature  z / temperature; 0 leaves the most likely token alone
        top_k        the k largest (arXiv:1805.04833)
        top_p        the largest up to the total probability top_p (arXiv:1904.09751)
        min_p        those with a probability of at least min_p times the largest (arXiv:2407.01082)
        typical      those whose information -log p is nearest to the entropy, up to this total probability
                     (arXiv:2202.00666)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    repetition: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        positive = self.repetition > 0 and self.no_repeat_ngram >= 0
        shares = 0 < self.top_p <= 1 and 0 <= self.min_p <= 1 and 0 < self.typical <= 1
        if not (self.temperature >= 0 and self.top_k >= 0 and shares and positive):
            raise UserError(
                f"temperature={self.temperature}, top-k={self.top_k}, top-p={self.top_p}, min-p={self.min_p}, typical="
                f"{self.typical}, repetition={self.repetition}, no-repeat-ngram={self.no_repeat_ngram}; expected "
                "temperature >= 0, top-k >= 0, 0 < top-p <= 1, 0 <= min-p <= 1, 0 < typical <= 1, repetition > 0, "
                "no-repeat-ngram >= 0\n    try: --temperature 0.8 --top-k 0 --top-p 0.95"
            )

    @property
    def truncates(self) -> bool:
        """True if some tokens may get the probability 0."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.typical < 1

    @property
    def penalizes(self) -> bool:
        """True if the tokens of the text matter."""
        return self.repetition != 1 or self.no_repeat_ngram > 0

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Apply everything: logits (R, V), tokens (R, S) of the texts, -1 for padding -> logits (R, V)."""
        return self.warp(self.penalize(logits, tokens))

    def penalize(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Apply the penalties: logits or log-probabilities (R, V), tokens (R, S), -1 for padding -> same."""
        if self.repetition != 1:
            logits = _repetition(logits, tokens, self.repetition)
        return _no_repeat(logits, tokens, self.no_repeat_ngram) if self.no_repeat_ngram else logits

    def warp(self, logits: Tensor) -> Tensor:
        """Apply temperature and truncation: logits (R, V) -> same."""
        if self.temperature == 0:
            best = torch.full_like(logits, MINUS_INFINITY)
            return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        logits = logits if self.temperature == 1 else logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, MINUS_INFINITY)
        if self.top_p < 1:
            logits = _most_likely(logits, self.top_p)
        if self.min_p > 0:
            chances = logits.softmax(-1)
            logits = logits.masked_fill(chances < self.min_p * chances.amax(-1, keepdim=True), MINUS_INFINITY)
        return _most_typical(logits, self.typical) if self.typical < 1 else logits


def _repetition(logits: Tensor, tokens: Tensor, factor: float) -> Tensor:
    seen = torch.zeros(len(logits), logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, torch.where(tokens == PADDING, logits.shape[-1], tokens), value=True)  # padding: one more column
    return torch.where(seen[:, :-1], torch.where(logits > 0, logits / factor, logits * factor), logits)


def _no_repeat(logits: Tensor, tokens: Tensor, n: int) -> Tensor:
    if tokens.shape[1] < n:
        return logits
    grams = tokens.unfold(1, n, 1)  # (R, S - n + 1, n)
    last = tokens[:, tokens.shape[1] - n + 1 :]  # (R, n - 1)
    # Padding never matches: the end of a text that is shorter than n - 1 tokens occurs once.
    again = (grams[:, :, :-1] == last[:, None]).all(-1) & (grams[:, :, -1] != PADDING)
    ends = torch.where(again, grams[:, :, -1], logits.shape[-1])
    banned = torch.zeros(len(logits), logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
    return logits.masked_fill(banned.scatter_(1, ends, value=True)[:, :-1], MINUS_INFINITY)


def _most_likely(logits: Tensor, share: float) -> Tensor:
    ordered, index = logits.sort(descending=True)
    chances = ordered.softmax(-1)
    more_likely = chances.cumsum(-1) - chances  # total probability of the more likely tokens
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, more_likely >= share)
    return logits.masked_fill(drop, MINUS_INFINITY)


def _most_typical(logits: Tensor, share: float) -> Tensor:
    log_p = logits.log_softmax(-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)  # 0 log 0 = 0
    index = (-log_p - entropy).abs().argsort()
    chances = log_p.gather(-1, index).exp()
    nearer = chances.cumsum(-1) - chances  # total probability of the more typical tokens
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, nearer >= share)
    return logits.masked_fill(drop, MINUS_INFINITY)
