"""Shared code of the recurrent attentions: base class without heads, norms, initial step sizes, precision."""

from collections.abc import Callable
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.number_format import precise


class MixerWiring(TypedDict):
    """Arguments that the model passes to an attention without heads."""

    d_model: int
    bias: bool
    dropout: float
    layer: int
    inner_norm: Callable[[int], nn.Module] | None


class Mixer(nn.Module):
    """Base of attentions without heads, queries and keys: o_proj(mixed), (B, T, inner) -> (B, T, d_model)."""

    takes_bias = False
    bidirectional = False

    def __init__(self, inner: int, **wiring: Unpack[MixerWiring]) -> None:
        super().__init__()
        norm = wiring["inner_norm"]
        self.o_proj = nn.Linear(inner, wiring["d_model"], bias=wiring["bias"])
        self.inner_norm = norm(inner) if norm else None
        self.dropout, self.layer = wiring["dropout"], wiring["layer"]

    def project(self, y: Tensor) -> Tensor:
        """Output projection: (B, T, inner) -> (B, T, D)."""
        y = self.o_proj(y if self.inner_norm is None else self.inner_norm(y))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps), the mean over the last axis.  (..., D) -> same."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y > 0."""
    # log(exp(y) - 1) = y + log(1 - exp(-y)), without the cancellation of exp(y) - 1 near 0.
    return y + torch.log(-torch.expm1(-y))


def step_sizes(*shape: int) -> Tensor:
    """Draw dt so that softplus(dt) is log-uniform in [0.001, 0.1], as in Mamba."""
    # exp(-6.9) = 0.001 and exp(-2.3) = 0.1.
    return inverse_softplus(torch.exp(torch.empty(*shape).uniform_(-6.9, -2.3)))


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert 16-bit tensors to float32: sums over a whole text lose too much precision in 16 bits."""
    return tuple(t.to(precise(t.dtype)) for t in tensors)
