"""Small networks between the layers of a frozen model: serial and parallel adapters, and edits of hidden states."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, pefts
from ablatio.model.peft.adapters import Adapter, LayerPeft, Targets, is_linear, said, widths
from ablatio_std.pefts._common import Rank

Size = Annotated[int, Positive, "width of the bottleneck"]
Nonlinearity = Annotated[Literal["relu", "gelu", "silu", "tanh"], "between its two maps"]
SUBLAYERS = ("self_attn", "mlp")


def is_sublayer(module: nn.Module) -> bool:
    """An attention or a feed-forward part: what holds linear maps itself."""
    return any(is_linear(child) for child in module.children())


def width_of(module: nn.Module) -> int:
    """The width of the stream that a sublayer, or a block, reads: that of its first linear map."""
    return next(widths(m)[1] for m in module.modules() if is_linear(m))


class Bottleneck(Adapter):
    """f(x) = s U act(V x + c) + d, U and d zero at the start: (..., D) -> same."""

    def __init__(self, width: int, size: int, activation: str, scale: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scale = getattr(F, activation), scale

    def added(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * self.up(self.activation(self.down(x)))
        return y


class Serial(Bottleneck):
    """y + f(y) of what the sublayer says."""

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return onto(said(layer, *args, **kwargs), self.added)


class Parallel(Bottleneck):
    """y + f(x) of what the sublayer reads."""

    def forward(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return onto(said(layer, *args, **kwargs), lambda y: self.added(x))


def onto(output: Any, change: Any) -> Any:
    """output + change(output); of a tuple, as transformers' attentions give it, the first member."""
    if isinstance(output, tuple):
        return (output[0] + change(output[0]), *output[1:])
    return output + change(output)


class _Beside(LayerPeft):
    fits = staticmethod(is_sublayer)


@pefts.register("adapter", paper="arXiv:1902.00751")
class SerialAdapter(_Beside):
    """y + U act(V y) on what a sublayer says, before it is added to the residual stream; U starts at zero.

    After attention and feed-forward part both (Houlsby), or with targets=[mlp] after the latter (Pfeiffer,
    arXiv:2005.00247).
    """

    def __init__(self, *, targets: Targets = SUBLAYERS, size: Size = 64, activation: Nonlinearity = "gelu") -> None:
        super().__init__(targets)
        self.size, self.activation = size, activation

    def adapter(self, layer: Any, path: str) -> Serial:
        return Serial(width_of(layer), self.size, self.activation)


@pefts.register("parallel_adapter", paper="arXiv:2110.04366")
class ParallelAdapter(_Beside):
    """y + s U act(V x) with x what the sublayer reads: beside the feed-forward part, or any other; U starts at zero."""

    def __init__(
        self,
        *,
        targets: Targets = ("mlp",),
        size: Size = 64,
        scale: Annotated[float, Positive, "s"] = 4.0,
        activation: Nonlinearity = "relu",
    ) -> None:
        super().__init__(targets)
        self.size, self.scale, self.activation = size, scale, activation

    def adapter(self, layer: Any, path: str) -> Parallel:
        return Parallel(width_of(layer), self.size, self.activation, self.scale)


class Edited(Adapter):
    """h + (W h + b - R h) R with orthonormal rows in R (r, D); W starts as R."""

    def __init__(self, width: int, rank: int, first: int | None) -> None:
        super().__init__()
        self.first = first
        self.basis = nn.Parameter(torch.randn(width, rank))
        self.source = nn.Parameter(self.rotation().detach().clone())
        self.bias = nn.Parameter(torch.zeros(rank))

    def rotation(self) -> Tensor:
        """(r, D): the columns of the basis made orthonormal."""
        q, r = torch.linalg.qr(self.basis)
        return (q * r.diagonal().sign()).T

    def forward(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rotation = self.rotation()

        def change(h: Tensor) -> Tensor:
            edit = F.linear(h, self.source - rotation, self.bias) @ rotation
            if self.first is None or not args:
                return edit
            return edit * (args[0].q_pos < self.first)[..., None]  # the context's positions: of each document

        return onto(said(layer, x, *args, **kwargs), change)


@pefts.register("reft", paper="arXiv:2404.03592")
class LoReFT(LayerPeft):
    """h + R^T (W h + b - R h): what a layer says, moved within r learned directions, the orthonormal rows of R.

    W starts as R and b as 0, so that nothing moves.  `first`: only the first tokens of each document are edited.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("*",),
        rank: Rank = 4,
        first: Annotated[int | None, Positive, "tokens of a document that are edited; null: all"] = None,
    ) -> None:
        super().__init__(targets)
        self.rank, self.first = rank, first

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """A block: what holds an attention."""
        return any(name in layer._modules for name in ("self_attn", "attn", "attention", "self_attention"))

    def adapter(self, layer: Any, path: str) -> Edited:
        return Edited(width_of(layer), self.rank, self.first)
