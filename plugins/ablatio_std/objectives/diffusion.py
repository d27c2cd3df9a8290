"""Masked diffusion: a masked language model trained at all masking rates, whose loss bounds -log p(text)."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Range, objectives
from ablatio.model.example import Example


@objectives.register("masked_diffusion", paper="arXiv:2406.07524")
class MaskedDiffusion:
    """Bound on -log p(text): mean over t of sum_i -log p(x_i | x with each token hidden with probability t) / t (MDLM).

    The sum is over hidden tokens, which are read as [MASK]; t is uniform in [least, 1] for each document, spread evenly
    over a batch.  A batch's mean divides by the sum of the weights 1 / t, whose expectation is its number of tokens.
    The time is not an input of the model, as in the paper; the head may also predict [MASK], which the paper rules out.
    """

    produces, splits_tokens = "blanks in place", True
    extra_tokens = 1

    def __init__(
        self,
        vocab_size: int,
        *,
        least: Annotated[float, Range(0, 1, open_low=True), "smallest t; bounds the weights 1 / t"] = 0.001,
    ) -> None:
        self.mask, self.least = vocab_size, least

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        targets = tokens[:, 1:]
        documents = torch.zeros_like(targets) if segments is None else segments[:, 1:]
        names = documents + (documents.max() + 1) * torch.arange(len(tokens))[:, None]  # another one in each row
        found, number = names.unique(return_inverse=True)
        start = torch.rand((), generator=generator)
        # One draw shifts an even grid over the batch: each t is uniform, and the variance of the bound is smaller than
        # with independent draws (as in the authors' code).
        even = (start + torch.randperm(len(found), generator=generator) / len(found)) % 1
        t = (self.least + (1 - self.least) * even)[number]  # (B, T)
        hidden = torch.rand(targets.shape, generator=generator) < t
        inputs = targets.masked_fill(hidden, self.mask)
        # 1 / t is the weight of the linear schedule alpha_t = 1 - t, -alpha'_t / (1 - alpha_t): with it the mean bounds
        # -log p.
        return Example(inputs, targets, hidden / t, None if segments is None else documents)
