"""Losses that judge each answer by itself against the reference: u_w, u_l are the two log-ratios, h = u_w - u_l."""

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
    """A function of u_w and u_l, (B,) each."""

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
    """L = -log sigmoid(beta u_w) - 1/2 sum over both of log sigmoid(-beta u): keeps the better answer's likelihood."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        u_w, u_l = self.beta * better, self.beta * worse
        return -F.logsigmoid(u_w) - 0.5 * F.logsigmoid(-u_w) - 0.5 * F.logsigmoid(-u_l)


@alignments.register("bco", paper="arXiv:2404.04656")
class BCO(_Ratios):
    """L = -log sigmoid(beta u_w) - log sigmoid(-beta u_l): a classifier of good and bad, on pairs."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * better) - F.logsigmoid(-self.beta * worse)


@alignments.register("sppo", paper="arXiv:2405.00675")
class SPPO(_Ratios):
    """L = (u_w - 1 / (2 beta))^2 + (u_l + 1 / (2 beta))^2: the labels are taken for win rates of 1 and 0."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return (better - 0.5 / self.beta).square() + (worse + 0.5 / self.beta).square()


@alignments.register("apo_zero", paper="arXiv:2408.06266")
class APOZero(_Ratios):
    """L = 1 - sigmoid(beta u_w) + sigmoid(beta u_l): for answers that are better than the model's own."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return torch.sigmoid(-self.beta * better) + torch.sigmoid(self.beta * worse)


@alignments.register("apo_down", paper="arXiv:2408.06266")
class APODown(_Ratios):
    """L = sigmoid(beta u_w) + 1 - sigmoid(beta h): for a model whose own answers are better than both."""

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * better) + torch.sigmoid(-self.beta * (better - worse))


@alignments.register("aot", paper="arXiv:2406.05882")
class AOT:
    """L = -log sigmoid(beta d): d = the i-th smallest log p_w - log p_l of the batch less the reference's i-th.

    So the policy's margins are pushed above the reference's in distribution (stochastic dominance), not pair by pair.
    """

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(self, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def loss(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, Metrics]:
        d = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
        loss = smoothed_logsigmoid(self.beta * d, self.label_smoothing).mean()
        return loss, pair_metrics(self.beta * (chosen - ref_chosen), self.beta * (rejected - ref_rejected))


@alignments.register("aot_unpaired", paper="arXiv:2406.05882")
class AOTUnpaired(_Ratios):
    """L = -log sigmoid(beta d): d = the i-th smallest u_w of the batch less the i-th smallest u_l; no pairs needed."""

    def __init__(self, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return smoothed_logsigmoid(self.beta * (better.sort().values - worse.sort().values), self.label_smoothing)


@alignments.register("ddo", paper="arXiv:2503.01103")
class DDO(_Ratios):
    """L = -log sigmoid(beta u_w) - alpha log(1 - sigmoid(beta u_l)): w from the data, l written by the frozen self.

    The likelihood ratio to its own frozen copy is the discriminator of a GAN that needs no second network.
    """

    rejected = "reference"

    def __init__(
        self,
        *,
        beta: Beta = 0.05,
        alpha: Annotated[float, NonNegative, "weight of what the model wrote itself"] = 1.0,
    ) -> None:
        self.beta, self.alpha = beta, alpha

    def of_ratios(self, better: Tensor, worse: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * better) - self.alpha * F.logsigmoid(-self.beta * worse)


@alignments.register("kto", paper="arXiv:2402.01306")
class KTO:
    """L = lambda (1 - v): v = sigmoid(beta (u - z)) of a wanted answer, sigmoid(beta (z - u)) of an unwanted one.

    u: log-ratio of the answer; z >= 0: the mean log-ratio of answers to other prompts, an estimate of the KL.
    """

    data = "labelled"
    metrics = ("train/reward_wanted", "train/reward_unwanted", "train/kl")

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        wanted_weight: Annotated[float, NonNegative, "lambda of the answers that are wanted"] = 1.0,
        unwanted_weight: Annotated[float, NonNegative, "lambda of the others"] = 1.0,
    ) -> None:
        self.beta, self.wanted_weight, self.unwanted_weight = beta, wanted_weight, unwanted_weight

    def loss(
        self, logps: Tensor, ref_logps: Tensor, labels: Tensor, kl_logps: Tensor, ref_kl_logps: Tensor
    ) -> tuple[Tensor, Metrics]:
        ratio = logps - ref_logps  # (B,)
        kl = (kl_logps - ref_kl_logps).mean().clamp(min=0).detach()
        gain = torch.where(labels, ratio - kl, kl - ratio)
        weight = torch.where(labels, self.wanted_weight, self.unwanted_weight)
        loss = (weight * torch.sigmoid(-self.beta * gain)).mean()
        reward = self.beta * ratio.detach()
        wanted, unwanted = ((reward * chosen).sum() / chosen.sum().clamp(min=1) for chosen in (labels, ~labels))
        return loss, dict(zip(self.metrics, (wanted, unwanted, kl), strict=True))
