"""Shortcuts whose weights depend on the token: multiway dynamic dense connections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import shortcuts
from ablatio.model.attention.softmax_attention import RMSNorm
from ablatio.model.context import Context
from ablatio_std.shortcuts._common import recall, remember


@shortcuts.register("mudd", paper="arXiv:2502.12170")
class MultiwayDynamicDense(nn.Module):
    """sum_j a_lj(h_l) h_j over all j <= l, one sum for the residual stream and one each for keys and values (MUDD).

    a_l = gelu(rmsnorm(h_l) W_1) W_2 + s_l for each token, W_1 (D, C (l + 1)), W_2 (C (l + 1), C (l + 1)), C sums.  W_2
    starts at 0, s_lj at 1 for j = l and at 0 for the others.  The sums for keys and values have norms of their own.
    Queries read the residual stream's sum: the paper has a fourth one for them.  (B, T, D) -> same.
    """

    per_depth, adds_values = True, True
    roles = {"static": "vector", "dynamic": "vector"}  # noqa: RUF012  (an init must not replace the zeros)

    def __init__(self, layer: int, n_layers: int, d_model: int, value_widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, sources = layer, layer + 1
        self.ways = 3 if layer < n_layers and value_widths[layer] else 1
        self.norms = nn.ModuleList(RMSNorm(d_model) for _ in range(self.ways - 1) if layer)
        if layer:  # there is nothing to sum before the first layer
            self.up = nn.Linear(d_model, self.ways * sources, bias=False)
            self.dynamic = nn.Parameter(torch.zeros(self.ways * sources, self.ways * sources))
            self.static = nn.Parameter(torch.tensor([0.0] * layer + [1.0]).repeat(self.ways, 1))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if not self.layer:
            return remember(0, x, ctx)
        states = torch.stack([*(recall(j, ctx) for j in range(self.layer)), x], dim=-2)  # (B, T, l + 1, D)
        remember(self.layer, x, ctx)
        inner = F.gelu(self.up(F.rms_norm(x, x.shape[-1:])))
        weights = (inner @ self.dynamic.to(inner.dtype)).unflatten(-1, self.static.shape) + self.static.to(inner.dtype)
        sums = weights.to(states.dtype) @ states  # (B, T, ways, D)
        if self.ways > 1:
            k, v = (norm(sums[..., i, :]).to(x.dtype) for i, norm in enumerate(self.norms, 1))
            ctx.hand_inputs(self.layer, k, v)
        return sums[..., 0, :]
