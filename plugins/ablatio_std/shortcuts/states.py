"""Shortcuts between the states of the residual stream: h_l is the output of layer l - 1, h_0 the embeddings."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Range, shortcuts
from ablatio.model.context import Context
from ablatio_std.shortcuts._common import recall, remember


@shortcuts.register("none", paper="arXiv:1706.03762")
class NoShortcut(nn.Module):
    """x, the output of the layer before; nothing is built.  (B, T, D) -> same."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x


@shortcuts.register("iteration", paper="arXiv:1807.03819")
class Iteration(nn.Module):
    """h_l + w p_l, p_l the sinusoids of l: layers that share weights can tell their uses apart.  (B, T, D) -> same.

    p_l[2i] = sin(l / 10000^(2i/D)), p_l[2i+1] = cos of the same; w is learned, starts at `start`, and is shared by
    layers that share their weights.  The Universal Transformer has w = 1 for all, on scaled embeddings.
    """

    def __init__(
        self, d_model: int, layer: int, n_layers: int, *, start: Annotated[float, "initial value of w"] = 0.1
    ) -> None:
        super().__init__()
        self.layer, self.width = layer, d_model
        self.weight = nn.Parameter(torch.full((1,), start)) if layer < n_layers else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.weight is None:
            return x
        # Made in each pass: layers that share their weights share their buffers, and have different numbers.
        place = torch.arange(self.width, dtype=torch.float64, device=x.device)
        angles = self.layer / 10000 ** (2 * (place // 2) / self.width)
        return x + (self.weight * torch.where(place % 2 == 0, angles.sin(), angles.cos())).to(x.dtype)


@shortcuts.register("unet", paper="arXiv:2209.12152")
class UNet(nn.Module):
    """Skips between mirrored layers: layer l of the second half reads h_l + w_l h_{L-l}.  (B, T, D) -> same.

    The scalars w_l are learned and start at `start`.  It equals block=unet, for every block.
    """

    per_depth = True

    def __init__(self, layer: int, n_layers: int, *, start: Annotated[float, "initial value of w_l"] = 1.0) -> None:
        super().__init__()
        self.layer, self.mirror = layer, n_layers - layer
        takes = n_layers - n_layers // 2 <= layer < n_layers
        self.weight = nn.Parameter(torch.tensor([start])) if takes else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        remember(self.layer, x, ctx)
        return x if self.weight is None else x + self.weight * recall(self.mirror, ctx)


@shortcuts.register("x0")
class X0(nn.Module):
    """a_l h_l + b_l h_0: every layer reads the embeddings too, with learned scalars.  (B, T, D) -> same.

    a_l starts at 1 and b_l at `start`.

    Source: modded-nanogpt, record of 2024-11-10, https://github.com/KellerJordan/modded-nanogpt
    """

    def __init__(self, layer: int, n_layers: int, *, start: Annotated[float, "initial value of b_l"] = 0.0) -> None:
        super().__init__()
        self.layer = layer
        self.weights = nn.Parameter(torch.tensor([1.0, start])) if layer < n_layers else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.weights is None:
            return x
        first = remember(0, x, ctx)  # later layers are given what layer 0 kept
        return self.weights[0] * x + self.weights[1] * first


@shortcuts.register("backout")
class Backout(nn.Module):
    """h_L - w h_m before the final norm, m = `depth` L: takes out what only the layers needed.  (B, T, D) -> same.

    w is learned and starts at `start`.

    Source: modded-nanogpt, record of 2025-10-04, https://github.com/KellerJordan/modded-nanogpt/pull/140
    """

    def __init__(
        self,
        layer: int,
        n_layers: int,
        *,
        depth: Annotated[float, Range(0, 1), "share of the layers before the state that is subtracted"] = 2 / 3,
        start: Annotated[float, "initial value of w"] = 0.5,
    ) -> None:
        super().__init__()
        # At most the input of the last layer: its output would be subtracted from itself.
        self.layer, self.middle = layer, min(round(depth * n_layers), n_layers - 1)
        self.weight = nn.Parameter(torch.tensor([start])) if layer == n_layers else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.layer == self.middle:
            remember(self.layer, x, ctx)
        return x if self.weight is None else x - self.weight * recall(self.middle, ctx)


@shortcuts.register("denseformer", paper="arXiv:2402.02622")
class DenseFormer(nn.Module):
    """sum_j a_lj h_j over j <= l with j = l mod `dilation`, for each `period`-th l > 0.  (B, T, D) -> same.

    The weights a_lj are learned; they start at 1 for j = l and at 0 for the others, so training starts from the plain
    model.  The average after the last layer is part of it.
    """

    per_depth = True

    def __init__(
        self,
        layer: int,
        *,
        dilation: Annotated[int, Range(1), "every how many earlier states are averaged"] = 1,
        period: Annotated[int, Range(1), "after every how many layers there is an average"] = 1,
    ) -> None:
        super().__init__()
        self.layer, self.sources = layer, range(layer % dilation, layer, dilation)
        averages = layer > 0 and layer % period == 0
        start = torch.zeros(len(self.sources) + 1)
        start[-1] = 1
        self.weights = nn.Parameter(start) if averages else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.weights is None:
            return remember(self.layer, x, ctx)
        average = self.weights[-1] * x
        for weight, layer in zip(self.weights, self.sources, strict=False):
            average = average + weight * recall(layer, ctx)
        remember(self.layer, x, ctx)
        return average
