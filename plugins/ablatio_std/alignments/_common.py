"""What preference losses share: the implicit reward, f-divergences, and the numbers that every one logs."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Positive, Range

Metrics = dict[str, Tensor]
PAIR_METRICS = ("train/reward_chosen", "train/reward_rejected", "train/reward_margin", "train/reward_accuracy")

Beta = Annotated[float, Positive, "strength of the tie to the reference, as in KL(policy, reference) x beta"]
Smoothing = Annotated[float, Range(0, 0.5, open_high=True), "share of the pairs whose order is wrong"]
Divergence = Annotated[
    Literal["reverse_kl", "forward_kl", "js", "alpha"], "from the reference, which the policy pays for (2309.16240)"
]
Alpha = Annotated[float, Range(0, 1), "of the alpha divergence: 1 is the reverse KL, 0 the forward one"]


def divergence_score(log_ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(u) of the divergence at u = policy / reference, without terms that cancel in a difference (2309.16240)."""
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 1):
        return log_ratio
    if divergence == "forward_kl":
        return 1 - torch.exp(-log_ratio)
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratio)
    return torch.expm1(((alpha - 1) * log_ratio).clamp(max=80.0)) / (alpha - 1)  # exp(80) is still finite in float32


def pair_metrics(chosen: Tensor, rejected: Tensor) -> Metrics:
    """The implicit rewards of both answers, and how often their order is right.  (B,) each -> ()."""
    chosen, rejected = chosen.detach(), rejected.detach()
    names = (chosen.mean(), rejected.mean(), (chosen - rejected).mean(), (chosen > rejected).float().mean())
    return dict(zip(PAIR_METRICS, names, strict=True))


def smoothed_logsigmoid(margin: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid(margin), of which a share counts the other way round."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
