"""Routing of tokens to experts: router, expert capacity, and load balancing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.ranks import ranks


class Router(nn.Linear):
    """Logits x W^T, computed in float32 or wider: half precision would change the choice.  (..., D) -> (..., E).

    In training the input is multiplied by uniform noise between 1 - jitter and 1 + jitter.
    """

    def __init__(self, d_model: int, experts: int, jitter: float = 0.0) -> None:
        super().__init__(d_model, experts, bias=False)
        self.jitter = jitter

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type if x.device.type != "meta" else "cpu", enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.training and self.jitter:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x, self.weight.to(x.dtype))


def normalize_gates(gates: Tensor) -> Tensor:
    """Divide gates by their sum.  (..., k) -> same."""
    return gates / gates.sum(-1, keepdim=True)


def capacity(tokens: int, k: int, experts: int, factor: float) -> int:
    """Number of assignments of a row that one expert accepts: factor * k * T / E, rounded up."""
    return math.ceil(factor * k * tokens / experts)


def fits_capacity(chosen: Tensor, experts: int, limit: int, real: Tensor | None = None) -> Tensor:
    """Return which assignments are among the first `limit` of their expert in a row: (B, T, k) -> (B, T, k) bool.

    Assignments are counted in the order of the tokens, and within a token from its best choice on, so that later tokens
    displace nothing.  real (B, T): False for padding, which is not counted.
    """
    hot = F.one_hot(chosen.flatten(1), experts)  # (B, T * k, E)
    if real is not None:
        hot = hot * real.repeat_interleave(chosen.shape[-1], 1)[..., None]
    rank = hot.cumsum(1).gather(2, chosen.flatten(1)[..., None])  # (B, T * k, 1), from 1
    return (rank <= limit).view_as(chosen)


def load_shares(chosen: Tensor, experts: int, real: Tensor | None = None) -> Tensor:
    """Each expert's share of all assignments (B, T, k) of all ranks: (E,), with the sum 1.

    real (B, T): False for padding.
    """
    hot = F.one_hot(chosen, experts).sum(-2)  # (B, T, E)
    counts = (hot if real is None else hot * real[..., None]).flatten(0, -2).sum(0)  # (E,)
    # Of all ranks: the loss is not linear in f and P, and the mean of the ranks' losses would be another one.
    counts = ranks().total(counts)
    return counts / counts.sum().clamp(min=1)


def balance_loss(probs: Tensor, share: Tensor, real: Tensor | None = None) -> Tensor:
    """E * sum_e f_e P_e, f the share of an expert and P its mean probability; minimum 1, at even f and P.

    probs (B, T, E); share (E,); real (B, T), False for padding -> ().  Switch Transformer, equations 4 to 6.
    """
    mean = token_mean(probs, real)
    # The share is a count and has no gradient; the mean probability has.
    return probs.shape[-1] * (share.to(mean.dtype) * mean).sum()


def z_loss(logits: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean of logsumexp(logits)^2, which keeps the router's logits small.  (B, T, E) -> ().  ST-MoE, equation 5."""
    return token_mean(logits.logsumexp(-1).square()[..., None], real)[0]


def token_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Mean over the tokens where `real` (B, T) is True; None: over all.  (B, T, F) -> (F,).

    With several ranks, the sum of this rank's tokens over the mean number of tokens of a rank: the mean of the results
    of all ranks is the mean over all tokens.
    """
    if real is None and ranks().world == 1:
        return values.flatten(0, -2).mean(0)
    real = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if real is None else real
    count = ranks().mean(real.sum().to(values.dtype))
    return (values * real[..., None]).flatten(0, -2).sum(0) / count.clamp(min=1 / ranks().world)


class BalanceBias(nn.Module):
    """Bias added to the scores by which experts are chosen, not to their gates: b_e += rate * sign(mean load - load_e).

    Updated in each training pass, without a gradient (Wang et al. 2024, arXiv:2408.15664).
    """

    bias: Tensor

    def __init__(self, experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias", torch.zeros(experts))

    def forward(self, scores: Tensor) -> Tensor:
        """Return scores + bias, without a gradient.  (..., E) -> same."""
        return scores.detach() + self.bias.to(scores.dtype)

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Move the bias against the load shares (E,) of this pass."""
        # Only the sign, as in the paper: the step does not depend on the batch size.
        self.bias.add_(torch.sign(share.mean() - share).to(self.bias.dtype), alpha=self.rate)
