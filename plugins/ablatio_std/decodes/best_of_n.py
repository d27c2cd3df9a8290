"""Best of n: several samples of each prompt, ranked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from ablatio import Positive, decodes
from ablatio.errors import UserError
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import LogitsProcessors, NoRepeatNgram, Repetition, Temperature, TopK, TopP
from ablatio.model.decoding.steps import chooser, token_by_token


@decodes.register("best_of_n", paper="arXiv:2009.01325")
class BestOfN:
    """n samples of each prompt, best first: argmax score(y).  N prompts -> n continuations each.

    score: likelihood, log p(y | x) | mean, log p(y | x) / |y| | judge, a reward or verifier that is handed over.
    Samples of equal score keep the order in which they were drawn.
    """

    samples = True

    def __init__(
        self,
        *,
        n: Annotated[int, Positive, "number of samples of each prompt"] = 8,
        by: Annotated[Literal["likelihood", "mean", "judge"], "what the samples are ranked by"] = "likelihood",
        temperature: Temperature = 1.0,
        top_k: TopK = 0,
        top_p: TopP = 1.0,
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        self.n, self.by = n, by
        self.settings = LogitsProcessors(
            temperature, top_k, top_p, repetition=repetition, no_repeat_ngram=no_repeat_ngram
        )

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        repeated = job.repeated(self.n)
        drawn = [found[0] for found in token_by_token(repeated, self.settings, chooser(repeated, self.settings))]
        groups = [drawn[i : i + self.n] for i in range(0, len(drawn), self.n)]
        return [self._ranked(job, row, group) for row, group in enumerate(groups)]

    def _ranked(self, job: DecodingJob, row: int, group: Sequence[Continuation]) -> list[Continuation]:
        scored = [replace(c, score=s) for c, s in zip(group, self._scores(job, row, group), strict=True)]
        # sorted is stable: equal scores keep the order of the draws.
        return sorted(scored, key=lambda c: -c.score)

    def _scores(self, job: DecodingJob, row: int, group: Sequence[Continuation]) -> Sequence[float]:
        if self.by == "judge":
            if job.judge is None:
                raise UserError(
                    "decode.by=judge ranks samples by a reward or a verifier, and none was given\n"
                    "    try: reward=length, or decode.by=mean"
                )
            return [float(score) for score in job.judge(row, [c.ids for c in group])]
        # At least 1: a continuation of no tokens has the mean 0.
        return [c.logprob / (max(1, c.tokens) if self.by == "mean" else 1) for c in group]
