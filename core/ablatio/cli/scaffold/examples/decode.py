from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Range, decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import sampler, token_by_token


@decodes.register("epsilon", paper="arXiv:2210.15191")
class Epsilon:
    """Samples from the tokens with p >= least, the most likely one included.  N prompts -> one continuation each."""

    samples = True

    def __init__(self, *, least: Annotated[float, Range(0, 1), "smallest probability of a token"] = 0.02) -> None:
        self.least = least

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return token_by_token(job, LogitsProcessors(), sampler(job, self.truncated))

    def truncated(self, logits: Tensor) -> Tensor:
        """Exclude unlikely tokens: (R, V) -> same."""
        chances = logits.softmax(-1)
        least = torch.minimum(torch.tensor(self.least, device=logits.device), chances.amax(-1, keepdim=True))
        return logits.masked_fill(chances < least, float("-inf"))
