"""Elementwise activations without parameters.  Any shape -> the same."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Positive, Range, activations
from ablatio_std.activations import _common
from ablatio_std.activations._common import Beta


@activations.register("relu", paper="doi:10.5555/3104322.3104425")
def relu(x: Tensor) -> Tensor:
    """max(0, x).  Any shape."""
    return F.relu(x)


@activations.register("relu2", paper="arXiv:2109.08668")
def relu2(x: Tensor) -> Tensor:
    """max(0, x)^2.  Any shape."""
    return _common.relu2(x)


@activations.register("leaky_relu2", paper="https://github.com/openai/parameter-golf")
def leaky_relu2(x: Tensor, *, slope: Annotated[float, Range(0, 1)] = 0.5) -> Tensor:
    """max(x, slope x)^2: squared ReLU that is slope^2 x^2 instead of 0 for x < 0.  Any shape."""
    return F.leaky_relu(x, slope).square()


@activations.register("gelu", paper="arXiv:1606.08415")
def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x * Phi(x), Phi the standard normal CDF; approximate=tanh is GPT-2's form.  Any shape."""
    return _common.gelu(x, approximate)


@activations.register("quick_gelu", paper="arXiv:1606.08415")
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the coarser of the paper's two approximations of GELU, used in CLIP.  Any shape."""
    return F.silu(1.702 * x) / 1.702


@activations.register("silu", paper="arXiv:1702.03118")
def silu(x: Tensor, *, beta: Beta = 1.0) -> Tensor:
    """x * sigmoid(beta x), also called swish (arXiv:1710.05941).  Any shape."""
    return _common.silu(x, beta)


@activations.register("mish", paper="arXiv:1908.08681")
def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)).  Any shape."""
    return _common.mish(x)


@activations.register("elu", paper="arXiv:1511.07289")
def elu(x: Tensor, *, alpha: Annotated[float, Positive] = 1.0) -> Tensor:
    """x for x > 0, alpha (e^x - 1) below.  Any shape."""
    return F.elu(x, alpha)


@activations.register("selu", paper="arXiv:1706.02515")
def selu(x: Tensor) -> Tensor:
    """s * elu(x; a), s = 1.0507 and a = 1.6733: keeps mean 0 and variance 1 of normal x.  Any shape."""
    return F.selu(x)


@activations.register("softplus", paper="https://papers.nips.cc/paper/1920")
def softplus(x: Tensor, *, beta: Annotated[float, Positive] = 1.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, a smooth ReLU (Dugas et al. 2000).  Any shape."""
    return F.softplus(x, beta)


@activations.register("tanh", paper="doi:10.1007/3-540-49430-8_2")
def tanh(x: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x), a sigmoid symmetric about 0 (LeCun et al. 1998).  Any shape."""
    return torch.tanh(x)


@activations.register("laplace", paper="arXiv:2209.10655")
def laplace(x: Tensor) -> Tensor:
    """(1 + erf((x - m) / (s sqrt 2))) / 2; m = sqrt(1/2), s = sqrt(1/(4 pi)) approximate relu^2.  Any shape."""
    # 1 / (s sqrt 2) = sqrt(2 pi) for this s.
    return 0.5 * torch.erf(math.sqrt(2 * math.pi) * (x - math.sqrt(0.5))) + 0.5
