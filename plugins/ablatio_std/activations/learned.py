"""Activations with trained parameters."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import NonNegative, Positive, activations
from ablatio.errors import UserError
from ablatio.registry.rules import rule
from ablatio_std.activations._common import relu2


@activations.register("star_relu", paper="arXiv:2210.13452")
class StarReLU(nn.Module):
    """s * max(0, x)^2 + b with learned scalars s and b; their initial values give mean 0, variance 1 for normal x.

    Any shape -> the same.
    """

    # max(0, x)^2 of a normal x has mean 1/2 and variance 5/4: scale = sqrt(4/5), shift = -scale / 2.
    def __init__(self, *, scale: float = 0.8944, shift: float = -0.4472) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.shift = nn.Parameter(torch.full((1,), shift))  # not named `bias`: an init sets every `bias` to zero

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(x.dtype), self.scale.to(x.dtype), relu2(x))


@activations.register("scaled_swiglu", paper="arXiv:2410.01131")
class ScaledSwiGLU(nn.Module):
    """silu(s_g gate) * (s_u up) with learned s_g and s_u (d_ff,), initialized to 1 (nGPT).

    For weight matrices whose rows are held at length 1 (stabilizer=unit_weights), which leaves the scale of each
    feature to be learned here.  Two tensors of one shape -> the same.
    """

    gated = True
    column_parallel = ("gate_scale", "up_scale")

    def __init__(self, d_ff: int) -> None:
        super().__init__()
        self.gate_scale, self.up_scale = (nn.Parameter(torch.ones(d_ff)) for _ in range(2))

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(self.gate_scale.to(gate.dtype) * gate) * (self.up_scale.to(up.dtype) * up)


rule(
    when="activation.name == 'scaled_swiglu' and mlp.name == 'deepseek_moe'",
    unless="mlp.granularity == 1 and mlp.shared < 2",
    why="scaled_swiglu learns one scale for each of d_ff features, and experts of deepseek_moe have another number of "
    "features: routed ones d_ff / {mlp.granularity}, the shared ones {mlp.shared} * d_ff / {mlp.granularity}",
    fix="mlp=moe",
)


@activations.register("xielu", paper="arXiv:2411.13010")
class XIELU(nn.Module):
    """p x^2 + beta x for x > 0, n (e^x - 1 - x) + beta x below; its derivative is linear for x > 0, an ELU below.

    p = softplus(alpha_p) > 0 and n = beta + softplus(alpha_n) > beta are learned; the knobs alpha_p and alpha_n are the
    initial values of p and n.  Any shape -> the same.

    Raises:
        UserError: alpha_n is not above beta.
    """

    def __init__(
        self,
        *,
        alpha_p: Annotated[float, Positive] = 0.8,
        alpha_n: Annotated[float, Positive, "above beta"] = 0.8,
        beta: Annotated[float, NonNegative] = 0.5,
    ) -> None:
        super().__init__()
        if alpha_n <= beta:
            raise UserError(
                f"activation.alpha_n={alpha_n:g} must be above activation.beta={beta:g} for xielu\n"
                f"    try: activation.alpha_n={beta + 0.3:g}"
            )
        self.beta = beta
        self.alpha_p = nn.Parameter(torch.full((1,), _inverse_softplus(alpha_p)))
        self.alpha_n = nn.Parameter(torch.full((1,), _inverse_softplus(alpha_n - beta)))

    def forward(self, x: Tensor) -> Tensor:
        p = F.softplus(self.alpha_p).to(x.dtype)
        # n > beta, as in the paper: the derivative n (e^x - 1) + beta for x < 0 then falls below 0.
        n = (self.beta + F.softplus(self.alpha_n)).to(x.dtype)
        # elu(x) - x is e^x - 1 - x for x < 0, and 0 otherwise.
        return p * relu2(x) + n * (F.elu(x) - x) + self.beta * x


rule(
    when="activation.name == 'xielu'",
    unless="activation.alpha_n > activation.beta",
    why="xielu needs activation.alpha_n above activation.beta: {activation.alpha_n} <= {activation.beta}",
    fix="activation.alpha_n={activation.beta + 0.3}",
)


def _inverse_softplus(y: float) -> float:
    """Return the x for which softplus(x) = y > 0."""
    return y + math.log(-math.expm1(-y))
