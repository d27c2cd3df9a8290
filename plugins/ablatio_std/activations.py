"""Nonlinearities: elementwise ones take x, gated ones (gate, up) (Shazeer 2020)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ablatio import activations


@activations.register("relu", paper="doi:10.5555/3104322.3104425")
def relu(x: Tensor) -> Tensor:
    """max(0, x).  Any shape."""
    return F.relu(x)


@activations.register("gelu", paper="arXiv:1606.08415")
def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x * Phi(x), Phi the normal distribution function; `tanh` is GPT-2's approximation.  Any shape."""
    return F.gelu(x, approximate=approximate)


@activations.register("silu", paper="arXiv:1702.03118")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish.  Any shape."""
    return F.silu(x)


@activations.register("geglu", paper="arXiv:2002.05202")
def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """gelu(gate) * up.  Two tensors of one shape -> the same."""
    return F.gelu(gate, approximate=approximate) * up


@activations.register("swiglu", paper="arXiv:2002.05202")
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.  Two tensors of one shape -> the same."""
    return F.silu(gate) * up
