"""nGPT's residual stream of constant length (Loshchilov et al. 2024, arXiv:2410.01131)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, placements
from ablatio_std.placements._common import Sublayer


@placements.register("hypersphere", paper="arXiv:2410.01131")
class Hypersphere(nn.Module):
    """x' = u(x + a (u(f(x)) - x)), u(x) = sqrt(D) x / |x|: each sublayer moves x towards its output on a sphere (nGPT).

    a = initial |s| / scale for each channel; s is learned and initialized to `scale`, so that an optimizer step of lr
    in s is a step of lr * initial / scale in a.  The paper's sphere has radius 1, with a factor sqrt(D) in its
    feed-forward layer; this one has radius sqrt(D) and no such factor.  `norm` is not used.  (B, T, D) -> same.

    The other changes of the paper are parts of their own, combined in preset=ngpt: stabilizer=unit_weights,
    activation=scaled_swiglu, attention.qk_norm=rmsnorm.
    """

    n_norms, final_norm = 0, False
    gain = 1.0

    def __init__(
        self,
        d_model: int,
        layer: int | None,
        *,
        initial: Annotated[float, Positive, "initial value of a; in the paper about 1 / n_layers"] = 0.05,
        scale: Annotated[float | None, Positive, "initial value of s; null: D^-1/2"] = None,
    ) -> None:
        super().__init__()
        if layer is not None:
            initial_s = d_model**-0.5 if scale is None else scale
            self.factor = initial / initial_s
            self.rate = nn.Parameter(torch.full((d_model,), initial_s))

    def open(self, x: Tensor) -> Tensor:
        return project_to_sphere(x)

    def close(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        # |s|, so that a step never leads away from the sublayer's output.
        rate = (self.factor * self.rate.abs()).to(x.dtype)
        return project_to_sphere(torch.addcmul(x, rate, project_to_sphere(sublayer(x)) - x))


def project_to_sphere(x: Tensor) -> Tensor:
    """sqrt(D) x / |x|, and 0 for x = 0.  (..., D) -> same."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
