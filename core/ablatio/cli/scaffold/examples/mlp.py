from torch import Tensor, nn

from ablatio import mlps
from ablatio.model.context import Context


@mlps.register("squared", paper="arXiv:2109.08668")
class Squared(nn.Module):
    """down(relu(up(x))^2): a feed-forward part with an activation of its own.  (B, T, D) -> same."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.down_proj(self.up_proj(x).relu().square())  # (B, T, D)
