"""Maps of the output head's logits: smooth bounds, symmetric and not.  (..., V) -> same."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Schedulable, heads

Cap = Annotated[float, Positive, Schedulable(), "bound on the absolute value of a logit"]


@heads.register("plain")
class Plain(nn.Module):
    """z, the products of hidden states and the head's matrix; nothing is built.  (..., V) -> same.

    Source: the head of every language model without a bound on its logits.
    """

    elementwise = True

    def forward(self, logits: Tensor) -> Tensor:
        return logits


@heads.register("softcap", paper="arXiv:2408.00118")
class Softcap(nn.Module):
    """cap tanh(z / cap): logits are bounded to (-cap, cap), and change little near 0 (Gemma 2).  (..., V) -> same.

    The NanoGPT speedrun has a cap of 15.
    """

    elementwise = True

    def __init__(self, *, cap: Cap = 30.0) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap)


@heads.register("isru", paper="https://github.com/KellerJordan/modded-nanogpt")
class InverseSquareRoot(nn.Module):
    """z / sqrt(1 + (z / cap)^2): bounded as by softcap, which it meets more slowly, without exp.  (..., V) -> same.

    The softcap of the speedrun's track of medium models since 16 April 2025.
    """

    elementwise = True

    def __init__(self, *, cap: Cap = 15.0) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return logits * torch.rsqrt(1 + (logits / self.cap).square())


@heads.register("sigmoid", paper="https://github.com/KellerJordan/modded-nanogpt/pull/181")
class Rescaled(nn.Module):
    """scale sigmoid((z + shift) / width): logits in (0, scale), steepest at z = -shift.  (..., V) -> same.

    With shift = 0 and scale = 4 width it is softcap with the cap 2 width, raised by 2 width, which the softmax does not
    see.  The shift makes it asymmetric: large logits are bounded more than small ones.
    """

    elementwise = True

    def __init__(
        self,
        *,
        scale: Annotated[float, Positive, Schedulable(), "largest logit"] = 23.0,
        shift: Annotated[float, Schedulable(), "minus the logit at which the slope is largest"] = 5.0,
        width: Annotated[float, Positive, Schedulable(), "unit of the logits"] = 7.5,
    ) -> None:
        super().__init__()
        self.scale, self.shift, self.width = scale, shift, width

    def forward(self, logits: Tensor) -> Tensor:
        return self.scale * torch.sigmoid((logits + self.shift) / self.width)
