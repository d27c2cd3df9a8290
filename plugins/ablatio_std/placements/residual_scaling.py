"""Residual branches with a weight: learned, or random in training."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, Schedulable, placements
from ablatio_std.placements._common import Sublayer


@placements.register("layerscale", paper="arXiv:2103.17239")
class LayerScale(nn.Module):
    """x + s * f(norm(x)) with a learned s for each channel (CaiT).  (B, T, D) -> same.

    s is initialized to `initial`; by default, as in the paper, to 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.
    """

    gain = 1.0

    def __init__(self, d_model: int, n_layers: int, *, initial: Annotated[float | None, Positive] = None) -> None:
        super().__init__()
        by_depth = 0.1 if n_layers <= 18 else 1e-5 if n_layers <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((d_model,), by_depth if initial is None else initial))

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + self.scale * sublayer(norm(x))


@placements.register("rezero", paper="arXiv:2003.04887")
class ReZero(nn.Module):
    """x + a f(x) with a learned scalar a, initialized to 0, and no norm.  (B, T, D) -> same.

    Each sublayer has its own a; in the paper's transformer the two sublayers of a layer share one.
    """

    n_norms, final_norm = 0, False
    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + self.scale * sublayer(x)


@placements.register("drop_path", paper="arXiv:1603.09382")
class DropPath(nn.Module):
    """x + b f(norm(x)) / (1 - p), b = 0 with probability p for each row in training, else 1.  (B, T, D) -> same.

    Stochastic depth: p grows linearly with the layer, up to `rate` in the last one.  Outside training: x + f(norm(x)).
    """

    gain = 1.0
    batch_dependent = True

    def __init__(
        self,
        n_layers: int,
        layer: int | None,
        *,
        rate: Annotated[float, Range(0, 1, open_high=True), Schedulable()] = 0.1,
    ) -> None:
        super().__init__()
        self.rate, self.number, self.n_layers = rate, 0 if layer is None else layer + 1, n_layers

    @property
    def kept(self) -> float:
        """Probability 1 - p that this layer's branch is kept."""
        # Early layers are needed by all later ones, so they are dropped least (the paper's linear rule).
        return 1 - self.rate * self.number / self.n_layers

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        y = sublayer(norm(x))
        kept = self.kept
        if not self.training or kept == 1:
            return x + y
        rows = x.new_empty(len(x), 1, 1).bernoulli_(kept)
        # Divided in training rather than multiplied afterwards: the trained model is that of mode pre.
        return x + y * (rows / kept)
