"""Small trained networks in a frozen model: serial and parallel adapters, and edits of hidden states."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, pefts
from ablatio.model.peft.adapters import Adapter, LayerPeft, Targets, is_linear, said, widths
from ablatio_std.pefts._common import Rank

Size = Annotated[int, Positive, "width of the bottleneck"]
Nonlinearity = Annotated[Literal["relu", "gelu", "silu", "tanh"], "activation of the bottleneck"]
SUBLAYERS = ("self_attn", "mlp")


def is_sublayer(module: nn.Module) -> bool:
    """True for an attention or a feed-forward layer: a module with linear layers among its children."""
    return any(is_linear(child) for child in module.children())


def width_of(module: nn.Module) -> int:
    """Input width of a sublayer or block: that of its first linear layer."""
    return next(widths(m)[1] for m in module.modules() if is_linear(m))


class Bottleneck(Adapter):
    """f(x) = s (U act(V x + c) + d), U and d initialized to 0.  (..., D) -> same."""

    def __init__(self, width: int, size: int, activation: str, scale: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        # The second matrix is 0, the first is not: the model starts as the base and has gradients.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scale = getattr(F, activation), scale

    def added(self, x: Tensor) -> Tensor:
        """f(x).  (..., D) -> same."""
        y: Tensor = self.scale * self.up(self.activation(self.down(x)))
        return y


class Serial(Bottleneck):
    """y + f(y) for a sublayer's output y."""

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return add_change(said(layer, *args, **kwargs), self.added)


class Parallel(Bottleneck):
    """y + f(x) for a sublayer's input x and output y."""

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # transformers' layers pass it by name.
        x = args[0] if args else kwargs["hidden_states"]
        return add_change(said(layer, *args, **kwargs), lambda y: self.added(x))


def add_change(output: Any, change: Any) -> Any:
    """output + change(output); in a tuple, as attentions of transformers return it, for the first element."""
    if isinstance(output, tuple):
        return (output[0] + change(output[0]), *output[1:])
    return output + change(output)


class _SublayerPeft(LayerPeft):
    fits = staticmethod(is_sublayer)


@pefts.register("adapter", paper="arXiv:1902.00751")
class SerialAdapter(_SublayerPeft):
    """y + U act(V y) for a sublayer's output y, before it is added to the residual stream; U is initialized to 0.

    After attention and feed-forward layers (Houlsby), or with targets=[mlp] after the feed-forward layers only
    (Pfeiffer, arXiv:2005.00247).
    """

    def __init__(self, *, targets: Targets = SUBLAYERS, size: Size = 64, activation: Nonlinearity = "gelu") -> None:
        super().__init__(targets)
        self.size, self.activation = size, activation

    def adapter(self, layer: Any, path: str) -> Serial:
        return Serial(width_of(layer), self.size, self.activation)


@pefts.register("parallel_adapter", paper="arXiv:2110.04366")
class ParallelAdapter(_SublayerPeft):
    """y + s U act(V x) for a sublayer's input x and output y, by default of feed-forward layers; initially U = 0."""

    def __init__(
        self,
        *,
        targets: Targets = ("mlp",),
        size: Size = 64,
        scale: Annotated[float, Positive, "factor s on the adapter's output"] = 4.0,
        activation: Nonlinearity = "relu",
    ) -> None:
        super().__init__(targets)
        self.size, self.scale, self.activation = size, scale, activation

    def adapter(self, layer: Any, path: str) -> Parallel:
        return Parallel(width_of(layer), self.size, self.activation, self.scale)


class SubspaceEdit(Adapter):
    """h + R^T (W h + b - R h) with W (r, D) and orthonormal rows in R (r, D); W is initialized to R.

    first: only the first tokens of each document are edited; None: all.
    """

    def __init__(self, width: int, rank: int, first: int | None) -> None:
        super().__init__()
        self.first = first
        self.basis = nn.Parameter(torch.randn(width, rank))
        self.source = nn.Parameter(self.rotation().detach().clone())
        self.bias = nn.Parameter(torch.zeros(rank))

    def rotation(self) -> Tensor:
        """R, (r, D): the columns of the basis, made orthonormal by QR."""
        q, r = torch.linalg.qr(self.basis)
        # QR fixes R up to the signs of its rows; with these signs it is continuous in the basis.
        return (q * r.diagonal().sign()).T

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rotation = self.rotation()

        def change(h: Tensor) -> Tensor:
            # W h - R h in one product.
            edit = F.linear(h, self.source - rotation, self.bias) @ rotation
            if self.first is None or not args:
                return edit
            return edit * (args[0].q_pos < self.first)[..., None]  # args[0]: the context, positions in each document

        return add_change(said(layer, x, *args, **kwargs), change)


@pefts.register("reft", paper="arXiv:2404.03592")
class LoReFT(LayerPeft):
    """h + R^T (W h + b - R h): edits a block's output h in r learned directions, the orthonormal rows of R.

    W is initialized to R and b to 0, so that the initial edit is zero.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("*",),
        rank: Rank = 4,
        first: Annotated[int | None, Positive, "number of first tokens of each document to edit; null: all"] = None,
    ) -> None:
        super().__init__(targets)
        self.rank, self.first = rank, first

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """True for a block: a module with an attention among its children."""
        return any(name in layer._modules for name in ("self_attn", "attn", "attention", "self_attention"))

    def adapter(self, layer: Any, path: str) -> SubspaceEdit:
        return SubspaceEdit(width_of(layer), self.rank, self.first)
