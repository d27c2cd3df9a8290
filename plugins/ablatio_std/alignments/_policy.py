"""What policy methods share: clipped ratios, sums from here to the end, and the knobs that most of them have."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, Range
from ablatio.model.rl.kl import masked_mean
from ablatio_std.alignments._common import Metrics

Clip = Annotated[float, Positive, "the ratio of new to old probability counts from 1 - clip to 1 + clip"]
KLWeight = Annotated[float, NonNegative, "weight of the KL to the reference"]
Group = Annotated[int, Range(2), "answers to each prompt"]
Answers = Annotated[int, Positive, "answers to each prompt"]
Epochs = Annotated[int, Positive, "passes over the answers of one rollout"]
Minibatches = Annotated[int, Positive, "optimizer steps in one pass"]
CLIPPED = ("train/clip_fraction", "train/ratio")


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) (1707.06347, eq. 7)."""
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clip_metrics(ratio: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float) -> Metrics:
    """The share of tokens (or answers) that the clip holds back, and the mean ratio."""
    ratio = ratio.detach()
    held = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return dict(zip(CLIPPED, (masked_mean(held.to(ratio.dtype), mask), masked_mean(ratio, mask)), strict=True))


def column(advantages: Tensor) -> Tensor:
    """(B,) -> (B, 1), (B, T) as it is: so that it multiplies what is known of each token."""
    return advantages[:, None] if advantages.dim() == 1 else advantages


def rest_of(rewards: Tensor) -> Tensor:
    """What is still to come at each token, this one included.  (B, T) -> (B, T)"""
    return rewards.flip(1).cumsum(1).flip(1)


def best_of(rewards: Tensor, group: int) -> Tensor:
    """1 for the best answer to each prompt (the first of equals), else 0.  (B,) -> (B,)"""
    best = rewards.view(-1, group).argmax(1)
    return torch.nn.functional.one_hot(best, group).flatten().to(rewards.dtype)
