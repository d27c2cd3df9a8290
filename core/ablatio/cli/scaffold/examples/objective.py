from typing import Annotated

import torch
from torch import Tensor

from ablatio import Fraction, objectives
from ablatio.model.example import Example


@objectives.register("sampled_targets", paper="arXiv:2404.07965")
class SampledTargets:
    """Predict a share of the next tokens, drawn anew for each batch.  (B, T + 1) -> inputs, targets, weights (B, T)."""

    def __init__(self, *, share: Annotated[float, Fraction, "of the targets that count"] = 0.5) -> None:
        self.share = share

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        counted = torch.rand(tokens[:, 1:].shape, generator=generator) < self.share
        return Example(tokens[:, :-1], tokens[:, 1:], counted.float(), None if segments is None else segments[:, :-1])
