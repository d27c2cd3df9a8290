"""Masked means, whitening, and three estimates of the KL divergence from log-probabilities of sampled tokens."""

from typing import NamedTuple

import torch
from torch import Tensor


class KL(NamedTuple):
    """Estimates of KL(policy || reference) in nats per token, from tokens sampled from the policy; () each."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the places where mask is 1; 0 if there is none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)  # clamp: 0 instead of NaN for an empty mask


def whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Normalize x to mean 0 and variance 1 over the places where mask is 1; 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return (x - mean) * torch.rsqrt(variance + epsilon) * mask


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL estimate exp(-d) - 1 + d per token, d = logps - ref_logps: unbiased, never negative (Schulman 2020)."""
    d = logps - ref_logps
    return torch.expm1(-d) + d  # expm1: exp(-d) - 1 cancels for small d


def kl_estimates(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> KL:
    """Masked token means of k1 = d, k2 = d^2 / 2 and k3 = exp(-d) - 1 + d, with d = logps - ref_logps.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html
    """
    d = logps - ref_logps
    return KL(*(masked_mean(x, mask) for x in (d, d.square() / 2, k3(logps, ref_logps))))
