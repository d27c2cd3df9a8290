"""Which experts a token goes to, how many an expert takes, and what keeps their loads even."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Router(nn.Linear):
    """Logits x W^T, in float32 or wider: half precision would change who is chosen.  (..., D) -> (..., E).

    jitter: in training the input is multiplied by uniform noise from 1 - jitter to 1 + jitter.
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


def normalised(gates: Tensor) -> Tensor:
    """Gates that add up to 1.  (..., k) -> same."""
    return gates / gates.sum(-1, keepdim=True)


def capacity(tokens: int, k: int, experts: int, factor: float) -> int:
    """The assignments that one expert takes of a row: factor * k * T / E, rounded up."""
    return math.ceil(factor * k * tokens / experts)


def within(chosen: Tensor, experts: int, room: int, real: Tensor | None = None) -> Tensor:
    """Whether an assignment finds room, first come first served along the row: (B, T, k) -> (B, T, k) bool.

    An assignment waits behind those of earlier tokens and the token's own better choices alone, so what comes later
    displaces nothing.  real (B, T): tokens that take room; padding takes none.
    """
    hot = F.one_hot(chosen.flatten(1), experts)  # (B, T * k, E)
    if real is not None:
        hot = hot * real.repeat_interleave(chosen.shape[-1], 1)[..., None]
    place = hot.cumsum(1).gather(2, chosen.flatten(1)[..., None])  # from 1
    return (place <= room).view_as(chosen)


def shares(chosen: Tensor, experts: int, real: Tensor | None = None) -> Tensor:
    """(E,) each expert's share of all assignments (B, T, k); they add up to 1."""
    hot = F.one_hot(chosen, experts).sum(-2)  # (B, T, E)
    counts = (hot if real is None else hot * real[..., None]).flatten(0, -2).sum(0)
    return counts / counts.sum().clamp(min=1)


def balance_loss(probs: Tensor, share: Tensor, real: Tensor | None = None) -> Tensor:
    """E * sum_e f_e P_e: the share f of an expert times its mean probability P; 1 when both are even, its minimum.

    probs (B, T, E); share (E,); real (B, T) -> ().  Switch Transformer, equations 4 to 6.
    """
    mean = token_mean(probs, real)
    return probs.shape[-1] * (share.to(mean.dtype) * mean).sum()


def z_loss(logits: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean of logsumexp(logits)^2: keeps the router's logits small.  (B, T, E) -> ().  ST-MoE, equation 5."""
    return token_mean(logits.logsumexp(-1).square()[..., None], real)[0]


def token_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """The mean over tokens that are no padding: (B, T, F) -> (F,)."""
    if real is None:
        return values.flatten(0, -2).mean(0)
    return (values * real[..., None]).flatten(0, -2).sum(0) / real.sum().clamp(min=1)


class BalanceBias(nn.Module):
    """A bias on the scores by which experts are chosen, not on their gates: b_e += rate * sign(mean load - load_e).

    It moves in each training pass, without a gradient (Wang et al. 2024, arXiv:2408.15664).
    """

    bias: Tensor

    def __init__(self, experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias", torch.zeros(experts))

    def forward(self, scores: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        return scores.detach() + self.bias.to(scores.dtype)

    @torch.no_grad()
    def follow(self, share: Tensor) -> None:
        """share (E,): of this pass's assignments."""
        self.bias.add_(torch.sign(share.mean() - share).to(self.bias.dtype), alpha=self.rate)
