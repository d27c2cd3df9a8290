"""What is predicted from what."""

import torch
from torch import Tensor

from ablatio import objectives
from ablatio.model.example import Example


@objectives.register("lm", paper="arXiv:1801.10198")
class NextToken:
    """-log p(x_{t+1} | x_1 ... x_t) at each position: rows of T + 1 tokens give T inputs and T targets."""

    gives = "next tokens"

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            segments=None if segments is None else segments[:, :-1],
        )
