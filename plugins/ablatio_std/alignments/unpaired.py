"""Losses on the log-ratio of each answer by itself.

Symbols: w the better answer, l the worse one; u_w, u_l their log-ratios log p - log p_ref, h = u_w - u_l.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import NonNegative, alignments
from ablatio_std.alignments._common import (
    PAIR_METRICS,
    Beta,
    Metrics,
    Smoothing,
    pair_metrics,
    smoothed_logsigmoid,
)


class _Ratios:
    """Base of losses that are a function of u_w and u_l, `of_ratios(u_w, u_l)`: (B,) each -> (B,)."""

    data = "pairs"
    metrics = PAIR_METRICS
    beta: float

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, Metrics]:
        better, worse = chosen - ref_chosen, rejected - ref_rejected
        return self.of_ratios(better, worse).mean(), pair_metrics(self.beta * better, self.beta * worse)


@alignments.register("nca", paper="arXiv:2402.05369")
class NCA(_Ratios):
    """L = -log sigmoid(beta u_w) - 1/2 (log sigmoid(-beta u_w) + log sigmoid(-beta u_l)): noise-contrastive alignment.

    It keeps up the likelihood of the better answer, and not only its margin.
    """

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        u_w, u_l = self.beta * better, self.beta * worse
        # The better answer stands in both sums: every answer of a prompt is also noise, with weight 1 / K for K = 2
        # answers.
        return -F.logsigmoid(u_w) - 0.5 * F.logsigmoid(-u_w) - 0.5 * F.logsigmoid(-u_l)


@alignments.register("bco", paper="arXiv:2404.04656")
class BCO(_Ratios):
    """L = -log sigmoid(beta u_w) - log sigmoid(-beta u_l): a binary classifier of good and bad answers, on pairs.

    The paper moreover shifts both rewards by a running mean (delta) and weights prompts of unpaired data; here delta is
    0, and no prompt is weighted.
    """

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * better) - F.logsigmoid(-self.beta * worse)


@alignments.register("sppo", paper="arXiv:2405.00675")
class SPPO(_Ratios):
    """L = (u_w - 1 / (2 beta))^2 + (u_l + 1 / (2 beta))^2: the labels are used as win rates of 1 and 0."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return (better - 0.5 / self.beta).square() + (worse + 0.5 / self.beta).square()


@alignments.register("apo_zero", paper="arXiv:2408.06266")
class APOZero(_Ratios):
    """L = 1 - sigmoid(beta u_w) + sigmoid(beta u_l): for better answers that surpass the model's own."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        # 1 - sigmoid(x) is written sigmoid(-x): no cancellation near 1.
        return torch.sigmoid(-self.beta * better) + torch.sigmoid(self.beta * worse)


@alignments.register("apo_down", paper="arXiv:2408.06266")
class APODown(_Ratios):
    """L = sigmoid(beta u_w) + 1 - sigmoid(beta h): for a model whose own answers surpass both answers of the pair."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * better) + torch.sigmoid(-self.beta * (better - worse))


@alignments.register("aot", paper="arXiv:2406.05882")
class AOT:
    """L = -log sigmoid(beta d), d = i-th smallest log p_w - log p_l in the batch - the reference's i-th smallest.

    Sorting raises the distribution of the policy's margins above the reference's (stochastic dominance), in place of
    the margin of each pair.
    """

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(self, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def loss(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, Metrics]:
        # Both sorted in the same order pairs quantile with quantile; the gradient goes through the permutation.
        d = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
        loss = smoothed_logsigmoid(self.beta * d, self.label_smoothing).mean()
        return loss, pair_metrics(self.beta * (chosen - ref_chosen), self.beta * (rejected - ref_rejected))


@alignments.register("aot_unpaired", paper="arXiv:2406.05882")
class AOTUnpaired(_Ratios):
    """L = -log sigmoid(beta d), d = i-th smallest u_w in the batch - i-th smallest u_l: does not use the pairing."""

    def __init__(self, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return smoothed_logsigmoid(self.beta * (better.sort().values - worse.sort().values), self.label_smoothing)


@alignments.register("ddo", paper="arXiv:2503.01103")
class DDO(_Ratios):
    """L = -log sigmoid(beta u_w) - alpha log(1 - sigmoid(beta u_l)): w from the data, l sampled from the reference.

    The likelihood ratio to the model's own frozen copy acts as a GAN's discriminator, without a second network.
    """

    rejected = "reference"

    def __init__(
        self,
        *,
        beta: Beta = 0.05,
        alpha: Annotated[float, NonNegative, "weight of the sampled answers"] = 1.0,
    ) -> None:
        self.beta, self.alpha = beta, alpha

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        # log(1 - sigmoid(x)) = logsigmoid(-x), finite for a large x too.
        return -F.logsigmoid(self.beta * better) - self.alpha * F.logsigmoid(-self.beta * worse)


@alignments.register("kto", paper="arXiv:2402.01306")
class KTO:
    """L = lambda (1 - v), v = sigmoid(beta (u - z)) for desirable answers, sigmoid(beta (z - u)) for undesirable ones.

    u: log-ratio of the answer; z >= 0: mean log-ratio of other prompts' answers, an estimate of the KL.
    """

    data = "labelled"
    metrics = ("train/reward_wanted", "train/reward_unwanted", "train/kl")

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        wanted_weight: Annotated[float, NonNegative, "lambda of desirable answers"] = 1.0,
        unwanted_weight: Annotated[float, NonNegative, "lambda of undesirable answers"] = 1.0,
    ) -> None:
        self.beta, self.wanted_weight, self.unwanted_weight = beta, wanted_weight, unwanted_weight

    def loss(
        self, logps: Tensor, ref_logps: Tensor, labels: Tensor, kl_logps: Tensor, ref_kl_logps: Tensor
    ) -> tuple[Tensor, Metrics]:
        ratio = logps - ref_logps  # (B,)
        # Without gradient, as in the paper: z only shifts where v saturates.  A KL is not negative, but this estimate
        # from a few mismatched answers can be.
        kl = (kl_logps - ref_kl_logps).mean().clamp(min=0).detach()
        gain = torch.where(labels, ratio - kl, kl - ratio)
        weight = torch.where(labels, self.wanted_weight, self.unwanted_weight)
        loss = (weight * torch.sigmoid(-self.beta * gain)).mean()  # 1 - sigmoid(x) = sigmoid(-x)
        reward = self.beta * ratio.detach()
        wanted, unwanted = ((reward * chosen).sum() / chosen.sum().clamp(min=1) for chosen in (labels, ~labels))
        return loss, dict(zip(self.metrics, (wanted, unwanted, kl), strict=True))
