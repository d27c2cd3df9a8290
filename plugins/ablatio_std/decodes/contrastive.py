"""Contrastive decoding: tokens that a good model likes and a weaker one does not."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, Range, decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import MINUS_INFINITY, LogitsProcessors, NoRepeatNgram, Repetition
from ablatio.model.decoding.texts import Texts
from ablatio_std.decodes._beams import BeamSearch


class Pair:
    """The same texts in two models; the log-probabilities are those of the first."""

    def __init__(self, expert: Texts, amateur: Texts) -> None:
        self.expert, self.amateur = expert, amateur
        self.log_probs = expert.log_probs

    @property
    def tokens(self) -> Tensor:
        """Ids so far: (R, S)."""
        return self.expert.tokens

    @property
    def logits(self) -> Tensor:
        """Logits of the first model: (R, V)."""
        return self.expert.logits

    @property
    def full(self) -> bool:
        """True if one of the models supports no further token."""
        return self.expert.full or self.amateur.full

    def extend(self, tokens: Tensor) -> None:
        """Append a token to each text: (R,)."""
        self.expert.extend(tokens)
        self.amateur.extend(tokens)

    def select(self, rows: Tensor) -> None:
        """Keep these texts, in this order."""
        self.expert.select(rows)
        self.amateur.select(rows)


@decodes.register("contrastive", paper="arXiv:2210.15097")
class Contrastive:
    """Beam search for sum_t log p(y_t) - log q(y_t), p the model and q a second, weaker one (the amateur).

    Only tokens with p(y_t) >= alpha max p are allowed.  q = softmax(z / amateur_temperature).  width=1: greedy.
    N prompts -> up to `width` continuations each.
    """

    needs_second_model, beams = True, True

    def __init__(
        self,
        *,
        alpha: Annotated[float, Range(0, 1), "least probability of a token, as a share of the largest"] = 0.1,
        amateur_temperature: Annotated[float, Positive, "divisor of the amateur's logits"] = 1.0,
        width: Annotated[int, Positive, "number of continuations that are kept"] = 5,
        length_penalty: Annotated[float, "exponent of the length by which the sum is divided"] = 1.0,
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        self.alpha, self.temperature = alpha, amateur_temperature
        processors = LogitsProcessors(repetition=repetition, no_repeat_ngram=no_repeat_ngram)
        self.search = BeamSearch(width, length_penalty, "heuristic", processors)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        pair = Pair(job.open(), job.open(job.second_model))
        return self.search(job, pair, lambda p: self.scores(p, pair.amateur.logits))

    def scores(self, p: Tensor, amateur: Tensor) -> Tensor:
        """Scores of the next tokens from the model's log-probabilities and the amateur's logits: (R, V)."""
        q = (amateur / self.temperature).log_softmax(-1)
        # The plausibility constraint: without it p / q is largest for tokens that both models find absurd.
        least = p.amax(-1, keepdim=True) + torch.tensor(self.alpha).log()
        return (p - q).masked_fill(p < least, MINUS_INFINITY)
