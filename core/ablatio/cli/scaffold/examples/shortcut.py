import torch
from torch import Tensor, nn

from ablatio import shortcuts
from ablatio.model.context import Context


@shortcuts.register("two_back", paper="arXiv:1608.06993")
class TwoBack(nn.Module):
    """h_l + w_l h_{l-1}: a layer also reads what the layer before it read; w_l is learned.  (B, T, D) -> same."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.passed_on(("two back", self.layer), lambda: x)
        before = ctx.passed_on(("two back", max(0, self.layer - 1)), lambda: x)
        return x + self.weight * before
