"""Optional methods of the parts of a model, with the signatures to which `register` holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from ablatio.model.context import Context


class NormMethods(Protocol):
    """Optional methods of a Norm."""

    @staticmethod
    def for_heads(width: int) -> nn.Module: ...


class PlacementMethods(Protocol):
    """Optional methods of a Placement."""

    def open(self, x: Tensor) -> Tensor: ...

    def close(self, x: Tensor, norm: nn.Module) -> Tensor: ...


class PositionMethods(Protocol):
    """Methods of a Position, of which it defines some."""

    def embed(self, x: Tensor, pos: Tensor) -> Tensor: ...

    def rotate(self, q: Tensor, k: Tensor, pos: Any) -> tuple[Tensor, Tensor]: ...

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor: ...

    def pair_bias(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...

    def score(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor: ...

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> Any: ...

    def skips(self, layer: int) -> bool: ...


class AttentionMethods(Protocol):
    """Optional methods of an Attention."""

    def hidden_flops(self, ctx: Context) -> int: ...
