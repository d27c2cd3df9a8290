"""Gated linear units (Dauphin et al. 2016, Shazeer 2020): one projection is multiplied by a gate made from another.

(gate, up), two tensors of one shape -> the same.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import OptionOf, Positive, activations
from ablatio.errors import UserError
from ablatio.registry.rules import rule
from ablatio_std.activations import _common
from ablatio_std.activations._common import Beta


@activations.register("glu", paper="arXiv:1612.08083")
def glu(gate: Tensor, up: Tensor) -> Tensor:
    """sigmoid(gate) * up.  Two tensors of one shape -> the same."""
    return torch.sigmoid(gate) * up


@activations.register("bilinear", paper="arXiv:2002.05202")
def bilinear(gate: Tensor, up: Tensor) -> Tensor:
    """gate * up: the product is the only nonlinearity.  Two tensors of one shape -> the same."""
    return gate * up


@activations.register("reglu", paper="arXiv:2002.05202")
def reglu(gate: Tensor, up: Tensor) -> Tensor:
    """max(0, gate) * up.  Two tensors of one shape -> the same."""
    return F.relu(gate) * up


@activations.register("geglu", paper="arXiv:2002.05202")
def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """gelu(gate) * up.  Two tensors of one shape -> the same."""
    return _common.gelu(gate, approximate) * up


@activations.register("swiglu", paper="arXiv:2002.05202")
def swiglu(gate: Tensor, up: Tensor, *, beta: Beta = 1.0) -> Tensor:
    """gate * sigmoid(beta gate) * up.  Two tensors of one shape -> the same."""
    return _common.silu(gate, beta) * up


@activations.register("clamped_swiglu", paper="arXiv:2508.10925")
def clamped_swiglu(
    gate: Tensor,
    up: Tensor,
    *,
    limit: Annotated[float, Positive, "upper bound of gate and of |up|"] = 7.0,
    alpha: Annotated[float, Positive] = 1.702,
) -> Tensor:
    """g * sigmoid(alpha g) * (u + 1), g = min(gate, limit), u = up clamped to [-limit, limit], as in gpt-oss.

    Two tensors of one shape -> the same.
    """
    g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
    # alpha in and 1 / alpha out: silu's one kernel computes g sigmoid(alpha g).
    return F.silu(alpha * g) * (u + 1) / alpha


@activations.register("gated", paper="arXiv:2002.05202")
class Gated(nn.Module):
    """f(gate) * up for any elementwise activation f with its default knobs.  Two tensors of one shape -> the same.

    Raises:
        UserError: `gate` names an activation that is gated itself.
    """

    gated = True

    def __init__(self, d_ff: int, *, gate: Annotated[str, OptionOf("activation")] = "mish") -> None:
        super().__init__()
        if activations[gate].facts["gated"]:
            raise UserError(
                f"activation.gate={gate} is a gated activation; an elementwise one was expected (activation={gate} "
                "uses it on its own)\n    try: activation.gate=silu"
            )
        self.function = activations.build(gate, d_ff=d_ff)

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.function(gate) * up


# A rule can list the gated activations of this module alone; Gated.__init__ refuses those of other distributions.
_GATED_HERE = sorted(entry.name for entry in activations.entries.values() if entry.module == __name__)

rule(
    when=f"activation.name == 'gated' and activation.gate in {_GATED_HERE}",
    why="activation.gate={activation.gate} is a gated activation; an elementwise one was expected "
    "(activation={activation.gate} uses it on its own)",
    fix="activation.gate=silu",
    where="activation.gate",
)
rule(
    when="'activation' in facts.mlp.wiring and 'gated' not in facts.mlp.wiring and facts.activation.gated",
    why="activation={activation.name} takes (gate, up), and mlp={mlp.name} does not ask for `gated`, so it calls "
    "activation(x); an activation of one argument was expected",
    fix="activation=gelu",
    where="activation",
)
