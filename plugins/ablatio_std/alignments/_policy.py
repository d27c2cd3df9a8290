"""Shared by policy methods: clipped ratios, rewards-to-go, best-of-n selection and common knob types."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, Range, Schedulable
from ablatio.model.rl.kl import masked_mean
from ablatio_std.alignments._common import Metrics

Clip = Annotated[float, Positive, "the ratio of new to old probability is clipped at 1 +- clip"]
KLWeight = Annotated[float, NonNegative, Schedulable(), "weight of the KL to the reference"]
Group = Annotated[int, Range(2), "answers per prompt"]
Answers = Annotated[int, Positive, "answers per prompt"]
Epochs = Annotated[int, Positive, "passes over the answers of one rollout"]
Minibatches = Annotated[int, Positive, "optimizer steps per pass"]
CLIPPED = ("train/clip_fraction", "train/ratio")


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) (1707.06347, eq. 7)."""
    # The minimum is pessimistic: with A < 0 a ratio above 1 + high keeps its gradient, so a bad answer that has become
    # likelier is still pushed down.
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clip_metrics(ratio: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float) -> Metrics:
    """Share of tokens (or answers) whose ratio is clipped in the direction of A, and the mean ratio: scalars.

    With `clipped_surrogate` these are the tokens without gradient; a method that clips a weight keeps theirs (CISPO).
    """
    ratio = ratio.detach()
    # Only these two cases lose their gradient; a ratio outside the interval on the other side of A is not clipped (see
    # the minimum above).
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return dict(zip(CLIPPED, (masked_mean(clipped.to(ratio.dtype), mask), masked_mean(ratio, mask)), strict=True))


def per_token(advantages: Tensor) -> Tensor:
    """Make advantages broadcast over tokens: (B,) -> (B, 1); (B, T) is returned unchanged."""
    return advantages[:, None] if advantages.dim() == 1 else advantages


def rewards_to_go(rewards: Tensor) -> Tensor:
    """Reward-to-go: the sum of rewards from each token to the end, this token included.  (B, T) -> (B, T)."""
    return rewards.flip(1).cumsum(1).flip(1)


def best_of(rewards: Tensor, group: int) -> Tensor:
    """1 for the best answer to each prompt (the first one if tied), else 0.  (B,) -> (B,)."""
    # One answer even among ties, so that each prompt has the same weight in the loss.
    best = rewards.view(-1, group).argmax(1)
    return torch.nn.functional.one_hot(best, group).flatten().to(rewards.dtype)
