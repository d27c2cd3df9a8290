"""Losses without a reference model: pairs, and rankings, of which plackett_luce alone uses a reference.

Symbols: log p the sum over an answer's tokens, |y| their number; w the better answer, l the worse one.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import NonNegative, Positive, alignments
from ablatio_std.alignments._common import PAIR_METRICS, Metrics, Smoothing, pair_metrics, smoothed_logsigmoid


@alignments.register("sft", paper="arXiv:2203.02155")
class SFT:
    """L = -log p(w), the mean over all tokens of the batch: imitation of the better answer; the baseline."""

    data = "pairs"
    metrics = PAIR_METRICS

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, Metrics]:
        means = chosen / chosen_length.clamp(min=1), rejected / rejected_length.clamp(min=1)
        # Sum over sum, as in supervised tuning: a mean of per-answer means would weight the tokens of short answers
        # more.
        return -chosen.sum() / chosen_length.sum().clamp(min=1), pair_metrics(*means)


@alignments.register("cpo", paper="arXiv:2401.08417")
class CPO:
    """L = -log sigmoid(beta (log p(w) - log p(l))) - alpha log p(w) / |w|: DPO with a uniform reference, and imitation.

    The imitation term is the mean over all tokens of the batch.
    """

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(
        self,
        *,
        beta: Annotated[float, Positive] = 0.1,
        alpha: Annotated[float, NonNegative, "weight of the imitation loss"] = 1.0,
        label_smoothing: Smoothing = 0.0,
    ) -> None:
        self.beta, self.alpha, self.label_smoothing = beta, alpha, label_smoothing

    def loss(self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor) -> tuple[Tensor, Metrics]:
        preference = smoothed_logsigmoid(self.beta * (chosen - rejected), self.label_smoothing).mean()
        imitation = -chosen.sum() / chosen_length.sum().clamp(min=1)
        return preference + self.alpha * imitation, pair_metrics(self.beta * chosen, self.beta * rejected)


@alignments.register("simpo", paper="arXiv:2405.14734")
class SimPO:
    """L = -log sigmoid(beta (log p(w) / |w| - log p(l) / |l|) - gamma): the reward is the mean log p per token."""

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(
        self,
        *,
        beta: Annotated[float, Positive] = 2.0,
        gamma: Annotated[float, NonNegative, "target margin"] = 1.0,
    ) -> None:
        self.beta, self.gamma = beta, gamma

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, Metrics]:
        better, worse = (
            self.beta * logp / length.clamp(min=1)
            for logp, length in ((chosen, chosen_length), (rejected, rejected_length))
        )
        return -F.logsigmoid(better - worse - self.gamma).mean(), pair_metrics(better, worse)


@alignments.register("orpo", paper="arXiv:2403.07691")
class ORPO:
    """L = -log p(w) / |w| - lam log sigmoid(log odds(w) - log odds(l)), odds = p / (1 - p).

    p in the odds is the geometric mean over tokens, exp(log p / |y|); the first term is the mean over all tokens of the
    batch.
    """

    data = "pairs"
    metrics = (*PAIR_METRICS, "train/log_odds_ratio")

    def __init__(self, *, lam: Annotated[float, NonNegative, "weight of the odds ratio"] = 0.1) -> None:
        self.lam = lam

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, Metrics]:
        better, worse = chosen / chosen_length.clamp(min=1), rejected / rejected_length.clamp(min=1)
        # log odds(p) = log p - log(1 - p), with log p per token: of a whole answer p is so small that 1 - p rounds to
        # 1.
        log_odds = (better - worse) - (_log1mexp(better) - _log1mexp(worse))
        imitation = -chosen.sum() / chosen_length.sum().clamp(min=1)
        metrics = pair_metrics(better, worse) | {"train/log_odds_ratio": log_odds.detach().mean()}
        return imitation - self.lam * F.logsigmoid(log_odds).mean(), metrics


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate both near 0 and far from it."""
    # An answer with probability 1 has infinite odds; the bound keeps loss and gradient finite.
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    # Each branch is clamped to where it is used: the gradient of the branch not taken must be finite too.
    near = torch.log(-torch.expm1(x.clamp(min=-0.7)))
    far = torch.log1p(-torch.exp(x.clamp(max=-0.6)))
    # The switch between expm1 and log1p at -log 2 loses the fewest digits.
    return torch.where(x > -0.6931471805599453, near, far)  # -log 2


@alignments.register("slic", paper="arXiv:2305.10425")
class SLiC:
    """L = max(0, delta - log p(w) + log p(l)) - lam log p(w): a margin in log-likelihood, and imitation (SLiC-HF)."""

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(
        self,
        *,
        delta: Annotated[float, Positive, "margin in nats"] = 1.0,
        lam: Annotated[float, NonNegative, "weight of the imitation loss"] = 0.1,
    ) -> None:
        self.delta, self.lam = delta, lam

    def loss(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Metrics]:
        # Sums over tokens, not means: delta is a margin between the log-likelihoods of whole answers.
        loss = torch.relu(self.delta - chosen + rejected) - self.lam * chosen
        return loss.mean(), pair_metrics(chosen, rejected)


class _Rankings:
    """Base of losses on K scored answers per prompt."""

    data = "rankings"
    metrics = ("train/rank_accuracy",)


@alignments.register("rrhf", paper="arXiv:2304.05302")
class RRHF(_Rankings):
    """L = sum over pairs of max(0, p_j - p_i) where i scores higher, - lam log p(best); p_i = log p / |y| of answer i.

    (B, K) each -> ().
    """

    def __init__(self, *, lam: Annotated[float, NonNegative, "weight of imitating the best answer"] = 1.0) -> None:
        self.lam = lam

    def loss(self, logps: Tensor, scores: Tensor, length: Tensor, present: Tensor) -> tuple[Tensor, Metrics]:
        means = logps / length.clamp(min=1)
        above = _above(scores, present)
        gap = means[:, None, :] - means[:, :, None]  # (B, K, K): p_j - p_i
        # Summed over pairs, not averaged, as in the paper: lam weighs imitation against this sum.
        ranking = (torch.relu(gap) * above).sum((1, 2))
        # Missing answers have a score too (0), which could be the highest.
        best = scores.masked_fill(~present, float("-inf")).argmax(1, keepdim=True)
        loss = (ranking - self.lam * logps.gather(1, best)[:, 0]).mean()
        return loss, {"train/rank_accuracy": _rank_accuracy(gap, above)}


@alignments.register("plackett_luce", paper="arXiv:2305.18290")
class PlackettLuce(_Rankings):
    """L = -sum over ranks k of log(exp(r_k) / sum over the answers from rank k on of exp(r)), r = beta x log-ratio.

    DPO for whole rankings (its appendix A.3): each answer is chosen among those not yet chosen.  (B, K) each -> ().
    """

    def __init__(self, *, beta: Annotated[float, Positive] = 0.1) -> None:
        self.beta = beta

    def loss(self, logps: Tensor, ref_logps: Tensor, scores: Tensor, present: Tensor) -> tuple[Tensor, Metrics]:
        lowest = float("-inf")
        reward = self.beta * (logps - ref_logps)
        order = scores.masked_fill(~present, lowest).argsort(dim=1, descending=True, stable=True)
        given = present.gather(1, order)
        # The lowest finite number, not -inf: logcumsumexp of only -inf has the gradient NaN.
        ranked = reward.gather(1, order).masked_fill(~given, torch.finfo(reward.dtype).min)
        # A cumulative log-sum-exp from the last rank, so that no exp(r) is formed.
        rest = ranked.flip(1).logcumsumexp(1).flip(1)  # (B, K): log sum of exp(r) from each rank on
        loss = ((rest - ranked) * given).sum(1).mean()
        gap = reward[:, None, :] - reward[:, :, None]
        return loss, {"train/rank_accuracy": _rank_accuracy(gap, _above(scores, present))}


def _above(scores: Tensor, present: Tensor) -> Tensor:
    """(B, K, K): True if answers i and j are both present and i scores higher."""
    both = present[:, :, None] & present[:, None, :]
    return (scores[:, :, None] > scores[:, None, :]) & both


def _rank_accuracy(gap: Tensor, above: Tensor) -> Tensor:
    """Share of the pairs that the policy orders as the scores do."""
    return ((gap.detach() < 0) & above).sum() / above.sum().clamp(min=1)
