"""A residual stream that is turned and never grows (Loshchilov et al. 2024, arXiv:2410.01131)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, placements
from ablatio_std.placements._common import Sublayer


@placements.register("hypersphere", paper="arXiv:2410.01131")
class Hypersphere(nn.Module):
    """x' = u(x + a (u(f(x)) - x)), u(x) = sqrt(D) x / |x|: each sublayer turns x towards what it says (nGPT).

    a = initial |s| / scale for each channel; s is learned, from `scale` on: an optimizer that moves it by lr a step
    moves a by lr initial / scale.  The paper's sphere has the radius 1, and its feed-forward part a factor sqrt(D);
    this one has the radius sqrt(D) and no such factor.  No `norm` has a place in it.  (B, T, D) -> same.

    The rest of the paper stands in parts of their own, which preset=ngpt puts together: stabilizer=unit_weights,
    activation=scaled_swiglu, attention.qk_norm=rmsnorm.
    """

    n_norms, final_norm = 0, False
    gain = 1.0

    def __init__(
        self,
        d_model: int,
        layer: int | None,
        *,
        initial: Annotated[float, Positive, "a at the start; the paper: about 1 / layers"] = 0.05,
        scale: Annotated[float | None, Positive, "s at the start; null: D^-1/2"] = None,
    ) -> None:
        super().__init__()
        if layer is not None:
            start = d_model**-0.5 if scale is None else scale
            self.factor = initial / start
            self.rate = nn.Parameter(torch.full((d_model,), start))

    def open(self, x: Tensor) -> Tensor:
        return on_sphere(x)

    def close(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        rate = (self.factor * self.rate.abs()).to(x.dtype)
        return on_sphere(torch.addcmul(x, rate, on_sphere(sublayer(x)) - x))


def on_sphere(x: Tensor) -> Tensor:
    """sqrt(D) x / |x|; zero stays zero."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
