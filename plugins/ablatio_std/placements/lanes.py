"""Residual streams whose parts are weighted: one that decays, and two lanes for attention and feed-forward."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, placements
from ablatio_std.placements._common import Sublayer


@placements.register("decayed", paper="https://github.com/KellerJordan/modded-nanogpt/pull/159")
class Decayed(nn.Module):
    """a x + b f(norm(x)) with learned scalars a, initially `start`, and b, initially 1.  (B, T, D) -> same.

    Where a > 1, as in the speedrun, what a layer added weighs less in later ones relative to what they see: the final
    norm removes the growth, and the residual stream decays exponentially, backwards from its end.
    """

    gain = 1.0

    def __init__(self, *, start: Annotated[float, Positive, "initial value of a"] = 1.1**0.5) -> None:
        super().__init__()
        self.kept, self.added = nn.Parameter(torch.full((1,), start)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return self.kept * x + self.added * sublayer(norm(x))


@placements.register("lanes", paper="https://github.com/KellerJordan/modded-nanogpt/pull/230")
class Lanes(nn.Module):
    """a x + b f(norm(x_i)) on two streams: attention reads the first, the feed-forward part the second.

    Both begin as the embeddings; a sublayer writes to both with its learned b (2,), and keeps both by its learned
    scalar a, all initially 1.  The mean of the two is the output after the last layer (partitioned hyper-connections;
    in the record the last layers alone have two lanes).  (B, T, 2, D) -> same.
    """

    gain = 1.0

    def __init__(self, layer: int | None, around: str) -> None:
        super().__init__()
        if layer is None:
            return
        self.lane = int(around == "mlp")
        self.kept, self.added = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))

    def open(self, x: Tensor) -> Tensor:
        """Copy x to both lanes.  (B, T, D) -> (B, T, 2, D)."""
        return x.unsqueeze(-2).repeat_interleave(2, dim=-2)

    def close(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.mean(-2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        y = sublayer(norm(x[..., self.lane, :]))
        return self.kept * x + self.added[:, None] * y.unsqueeze(-2)
