"""Decoding that keeps one continuation of each prompt: greedy and sampling."""

from collections.abc import Sequence

from ablatio import decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import (
    LogitsProcessors,
    MinP,
    NoRepeatNgram,
    Repetition,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from ablatio.model.decoding.steps import chooser, greedy, token_by_token


@decodes.register("greedy", paper="arXiv:1409.3215")
class Greedy:
    """y_t = argmax p(y | x, y_<t).  N prompts -> one continuation each."""

    def __init__(self, *, repetition: Repetition = 1.0, no_repeat_ngram: NoRepeatNgram = 0) -> None:
        self.processors = LogitsProcessors(temperature=0, repetition=repetition, no_repeat_ngram=no_repeat_ngram)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return token_by_token(job, self.processors, greedy)


@decodes.register("sample", paper="arXiv:1904.09751")
class Sample:
    """y_t ~ softmax(z_t / temperature), truncated and renormalized.  N prompts -> one continuation each.

    The order of the settings is that of ablatio.model.decoding.logits.LogitsProcessors, and of transformers.
    """

    samples = True

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        top_k: TopK = 0,
        top_p: TopP = 1.0,
        min_p: MinP = 0.0,
        typical: Typical = 1.0,
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        self.processors = LogitsProcessors(temperature, top_k, top_p, min_p, typical, repetition, no_repeat_ngram)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return token_by_token(job, self.processors, chooser(job, self.processors))
