"""DPO and its relatives: losses on the difference of the implicit rewards of two answers, against a reference.

Symbols: w the better answer, l the worse one; h = log-ratio of w - log-ratio of l, where a log-ratio is the policy's
log-probability of the answer minus the reference's.  With a divergence other than the reverse KL, h is the difference
of f' at the two ratios.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Positive, Range, alignments
from ablatio_std.alignments._common import (
    PAIR_METRICS,
    Alpha,
    Beta,
    Divergence,
    Metrics,
    Smoothing,
    divergence_score,
    pair_metrics,
    smoothed_logsigmoid,
)


class _Pairwise:
    """Base of losses that are a function of h, `of_margin(h)`: (B,) -> (B,); logs implicit rewards beta x log-ratio."""

    data = "pairs"
    metrics = PAIR_METRICS
    beta: float
    divergence: str
    alpha: float

    def of_margin(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, Metrics]:
        ratios = (chosen - ref_chosen, rejected - ref_rejected)
        better, worse = (divergence_score(r, self.divergence, self.alpha) for r in ratios)
        # Logged rewards are the log-ratios even with another divergence: comparable between arms, and nats.
        return self.of_margin(better - worse).mean(), pair_metrics(self.beta * ratios[0], self.beta * ratios[1])


@alignments.register("dpo", paper="arXiv:2305.18290")
class DPO(_Pairwise):
    """L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h); e = `label_smoothing`, 0 in DPO, above 0 in cDPO."""

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        label_smoothing: Smoothing = 0.0,
        divergence: Divergence = "reverse_kl",
        alpha: Alpha = 0.5,
    ) -> None:
        self.beta, self.label_smoothing, self.divergence, self.alpha = beta, label_smoothing, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        return smoothed_logsigmoid(self.beta * h, self.label_smoothing)


@alignments.register("robust", paper="arXiv:2403.00409")
class Robust(_Pairwise):
    """L = (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e): unbiased if a share e is mislabeled."""

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        label_smoothing: Smoothing = 0.1,
        divergence: Divergence = "reverse_kl",
        alpha: Alpha = 0.5,
    ) -> None:
        self.beta, self.label_smoothing, self.divergence, self.alpha = beta, label_smoothing, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        # The plus sign and 1 - 2 e undo the expected effect of flipped labels; the loss may be negative, cDPO's is not.
        e, x = self.label_smoothing, self.beta * h
        return (-(1 - e) * F.logsigmoid(x) + e * F.logsigmoid(-x)) / (1 - 2 * e)


@alignments.register("hinge", paper="arXiv:2309.06657")
class Hinge(_Pairwise):
    """L = max(0, 1 - beta h): RSO's hinge loss on the normalized likelihood.  (B,) each -> ()."""

    def __init__(self, *, beta: Beta = 0.1, divergence: Divergence = "reverse_kl", alpha: Alpha = 0.5) -> None:
        self.beta, self.divergence, self.alpha = beta, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        # The margin is 1 in units of beta h, as in RSO: beta alone sets it in nats.
        return torch.relu(1 - self.beta * h)


@alignments.register("exo", paper="arXiv:2402.00856")
class EXO(_Pairwise):
    """L = KL(p, q), p = (sigmoid(beta h), sigmoid(-beta h)), q = (1 - e, e) the smoothed labels.

    DPO minimizes the KL in the other direction, KL(q, p).
    """

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        label_smoothing: Annotated[
            float, Range(0, 0.5, open_low=True, open_high=True), "e; above 0, as the KL is infinite at 0"
        ] = 1e-3,
        divergence: Divergence = "reverse_kl",
        alpha: Alpha = 0.5,
    ) -> None:
        self.beta, self.label_smoothing, self.divergence, self.alpha = beta, label_smoothing, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        log_p, log_not_p = F.logsigmoid(self.beta * h), F.logsigmoid(-self.beta * h)
        # log1p(-e) keeps the small e, which 1 - e would round.
        wrong = self.label_smoothing
        return log_p.exp() * (log_p - math.log1p(-wrong)) + log_not_p.exp() * (log_not_p - math.log(wrong))


@alignments.register("discopop", paper="arXiv:2406.08414")
class DiscoPOP(_Pairwise):
    """L = (1 - s) (-log sigmoid(x)) + s exp(-x), x = beta h, s = sigmoid(x / tau): a loss found by an LLM search."""

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        tau: Annotated[float, Positive, "width of the transition between the two losses"] = 0.05,
        divergence: Divergence = "reverse_kl",
        alpha: Alpha = 0.5,
    ) -> None:
        self.beta, self.tau, self.divergence, self.alpha = beta, tau, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        x = self.beta * h
        switch = torch.sigmoid(x / self.tau)
        # s exp(-x) in one exponent: for x below -88 the product would be 0 times infinity, a NaN.
        return (1 - switch) * -F.logsigmoid(x) + torch.exp(F.logsigmoid(x / self.tau) - x)


@alignments.register("tr_dpo", paper="arXiv:2404.09656")
class TRDPO(_Pairwise):
    """DPO with an updated reference: every `every` steps it becomes tau x policy + (1 - tau) x reference."""

    moves_reference = True

    def __init__(
        self,
        *,
        beta: Beta = 0.1,
        tau: Annotated[float, Range(0, 1, open_low=True), "share of the policy; 1 replaces the reference"] = 0.6,
        every: Annotated[int, Positive, "steps between two updates of the reference"] = 64,
    ) -> None:
        self.beta, self.tau, self.every = beta, tau, every
        # No knobs: the paper moves the reference of plain DPO.
        self.divergence, self.alpha = "reverse_kl", 1.0

    def of_margin(self, h: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * h)

    def reference_rate(self, step: int) -> float:
        """Share of the policy in the update of the reference after `step` steps; 0: no update."""
        return self.tau if step % self.every == 0 else 0.0


class _PerToken:
    """Base of losses on h per token: each answer's log-ratio is divided by its length.  Otherwise as _Pairwise."""

    data = "pairs"
    metrics = PAIR_METRICS
    beta: float
    divergence: str
    alpha: float

    def of_margin(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(
        self,
        chosen: Tensor,
        rejected: Tensor,
        ref_chosen: Tensor,
        ref_rejected: Tensor,
        chosen_length: Tensor,
        rejected_length: Tensor,
    ) -> tuple[Tensor, Metrics]:
        ratios = (chosen - ref_chosen, rejected - ref_rejected)
        better, worse = (divergence_score(r, self.divergence, self.alpha) for r in ratios)
        # Clamped for an answer that was truncated away: it then counts as log-ratio 0.
        h = better / chosen_length.clamp(min=1) - worse / rejected_length.clamp(min=1)
        return self.of_margin(h).mean(), pair_metrics(self.beta * ratios[0], self.beta * ratios[1])


@alignments.register("ipo", paper="arXiv:2310.12036")
class IPO(_PerToken):
    """L = (h - 1 / (2 beta))^2, h per token as the authors use it: the margin has a finite target."""

    def __init__(self, *, beta: Beta = 0.1, divergence: Divergence = "reverse_kl", alpha: Alpha = 0.5) -> None:
        self.beta, self.divergence, self.alpha = beta, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        return (h - 1 / (2 * self.beta)).square()


@alignments.register("dpo_norm", paper="arXiv:2411.15124")
class DPONorm(_PerToken):
    """L = -log sigmoid(beta h) with h per token: length-normalized DPO (Tulu 3)."""

    # Tulu 3's beta: far above DPO's 0.1, as a log-ratio per token is that much smaller than a sum.
    def __init__(self, *, beta: Beta = 5.0, divergence: Divergence = "reverse_kl", alpha: Alpha = 0.5) -> None:
        self.beta, self.divergence, self.alpha = beta, divergence, alpha

    def of_margin(self, h: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * h)
