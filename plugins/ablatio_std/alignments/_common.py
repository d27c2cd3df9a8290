"""Shared by preference losses: knob types, f-divergences, label smoothing and the logged metrics."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Positive, Range, Schedulable
from ablatio.model.rl.kl import masked_mean

Metrics = dict[str, Tensor]
PAIR_METRICS = ("train/reward_chosen", "train/reward_rejected", "train/reward_margin", "train/reward_accuracy")

Beta = Annotated[float, Positive, Schedulable(), "weight of the penalty beta x KL(policy, reference)"]
Smoothing = Annotated[float, Range(0, 0.5, open_high=True), "assumed share of mislabeled pairs"]
Divergence = Annotated[
    Literal["reverse_kl", "forward_kl", "js", "alpha"], "divergence from the reference that is penalized (2309.16240)"
]
Alpha = Annotated[float, Range(0, 1), "order of divergence=alpha: 1 is the reverse KL, 0 the forward KL"]
# Log-ratios are sums over an answer, so -100 is not rare; exp(80) is finite in float32, and the difference of two
# infinite scores would be NaN.
LARGEST = 80.0


def divergence_score(log_ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """Return f'(u) of the f-divergence at u = policy / reference (2309.16240).

    Constants are left out, since the losses use differences of two values only.  (B,) -> (B,).
    """
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 1):
        return log_ratio
    if divergence == "forward_kl":
        return 1 - torch.exp((-log_ratio).clamp(max=LARGEST))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratio)
    # trl's parametrization; the paper's alpha is 1 minus this one.
    return torch.expm1(((alpha - 1) * log_ratio).clamp(max=LARGEST)) / (alpha - 1)


def pair_metrics(chosen: Tensor, rejected: Tensor, paired: Tensor | None = None) -> Metrics:
    """Mean implicit reward of both answers, their margin, and the share of pairs in the right order: (B,) -> ().

    paired  1 for the pairs that count, 0 for the others; None: all count
    """
    # Logged values must not hold the graph of the step in memory.
    chosen, rejected = chosen.detach(), rejected.detach()
    values = (chosen, rejected, chosen - rejected, (chosen > rejected).float())
    means = [value.mean() if paired is None else masked_mean(value, paired) for value in values]
    return dict(zip(PAIR_METRICS, means, strict=True))


def smoothed_logsigmoid(margin: Tensor, smoothing: float) -> Tensor:
    """-(1 - smoothing) log sigmoid(margin) - smoothing log sigmoid(-margin): (B,) -> (B,)."""
    # logsigmoid, not log(sigmoid): a margin of -100 has the loss 100, where the logarithm of the rounded sigmoid is
    # infinite.
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
