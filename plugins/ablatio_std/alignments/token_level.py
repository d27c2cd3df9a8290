"""Pairwise losses on single tokens: length-desensitized DPO and weighting by the policy's own probability."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Fraction, alignments
from ablatio_std.alignments._common import PAIR_METRICS, Beta, Metrics, pair_metrics


@alignments.register("ld_dpo", paper="arXiv:2409.06411")
class LDDPO:
    """DPO with less weight on length: tokens beyond the length of the shorter answer have the weight alpha.

    log p = sum over t <= min(|w|, |l|) + alpha x sum over the rest, for policy and reference.  (B, T) each -> ().
    """

    data = "pairs"
    metrics = PAIR_METRICS

    def __init__(self, *, beta: Beta = 0.1, alpha: Annotated[float, Fraction, "1 gives DPO"] = 0.5) -> None:
        self.beta, self.alpha = beta, alpha

    def loss(
        self,
        chosen_tokens: Tensor,
        rejected_tokens: Tensor,
        ref_chosen_tokens: Tensor,
        ref_rejected_tokens: Tensor,
        chosen_mask: Tensor,
        rejected_mask: Tensor,
    ) -> tuple[Tensor, Metrics]:
        shared = torch.minimum(chosen_mask.sum(1), rejected_mask.sum(1))[:, None]  # (B, 1)
        better, worse = (
            ((tokens - reference) * self._weights(mask, shared)).sum(1)
            for tokens, reference, mask in (
                (chosen_tokens, ref_chosen_tokens, chosen_mask),
                (rejected_tokens, ref_rejected_tokens, rejected_mask),
            )
        )
        loss = -F.logsigmoid(self.beta * (better - worse)).mean()
        return loss, pair_metrics(self.beta * better, self.beta * worse)

    def _weights(self, mask: Tensor, shared: Tensor) -> Tensor:
        # cumsum counts answer tokens, so the position of the padding does not matter; the shorter answer keeps all its
        # tokens.
        return mask * torch.where(mask.cumsum(1) <= shared, 1.0, self.alpha)


@alignments.register("wpo", paper="arXiv:2406.11827")
class WPO:
    """DPO x w(chosen) x w(rejected): answers that the policy is likely to write get more weight.

    w = exp of the mean over tokens of log p_t - log sum_v p_t(v)^2, without gradient.  The second term is the log of
    the expected probability of a token that the policy samples, so that its own answers have a weight near 1.
    """

    data = "pairs"
    metrics = PAIR_METRICS
    detached = True

    def __init__(self, *, beta: Beta = 0.1) -> None:
        self.beta = beta

    def loss(
        self,
        chosen_tokens: Tensor,
        rejected_tokens: Tensor,
        ref_chosen: Tensor,
        ref_rejected: Tensor,
        chosen_mask: Tensor,
        rejected_mask: Tensor,
        chosen_collision: Tensor,
        rejected_collision: Tensor,
    ) -> tuple[Tensor, Metrics]:
        better, worse = chosen_tokens.sum(1) - ref_chosen, rejected_tokens.sum(1) - ref_rejected
        weight = self._weight(chosen_tokens, chosen_collision, chosen_mask)
        weight = weight * self._weight(rejected_tokens, rejected_collision, rejected_mask)
        loss = (-F.logsigmoid(self.beta * (better - worse)) * weight).mean()
        return loss, pair_metrics(self.beta * better, self.beta * worse)

    @staticmethod
    def _weight(tokens: Tensor, collision: Tensor, mask: Tensor) -> Tensor:
        # Divided by the length: a product over tokens would be 0 for every long answer.
        mean = ((tokens - collision) * mask).sum(1) / mask.sum(1).clamp(min=1)
        # With a gradient the loss would fall by making both answers unlikely.
        return mean.detach().exp()
