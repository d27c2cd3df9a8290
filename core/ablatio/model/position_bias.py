"""Biases of position encodings on the attention logits: of all pairs, or computed pair by pair in a kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablatio.model import flex_attention as flex
from ablatio.model.number_format import precise, without_autocast


class Bias:
    """A position's bias on the attention logits of one pass.

    of_pair  function (head, query position, key position) -> the bias of one pair, for a kernel that computes it; None
             if it depends on weights or on more than that
    later    True if the bias of all pairs is made when it is first read: a kernel may do without
    """

    __slots__ = ("_dense", "_make", "of_pair")

    def __init__(
        self, make: Callable[[], Tensor], of_pair: Callable[..., Tensor] | None = None, *, later: bool
    ) -> None:
        self._make, self.of_pair = make, of_pair
        self._dense = None if later else make()

    @property
    def dense(self) -> Tensor:
        """The bias of all pairs: (H, T, S) or (B, H, T, S)."""
        if self._dense is None:
            self._dense = self._make()
        return self._dense


def bias_of(position: Any, q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype) -> Bias:
    """Return the position's bias in float32 or wider, under autocast too.

    In bfloat16 alibi would have 641 different biases for 2048 keys.
    """

    def dense() -> Tensor:
        with without_autocast(q_pos.device):
            bias: Tensor = position.bias(q_pos, k_pos)
        return bias.to(precise(dtype))

    pair_bias = getattr(position, "pair_bias", None)
    of_pair = None if pair_bias is None else pair_bias()
    return Bias(dense, of_pair, later=of_pair is not None and flex.expected(q_pos.device, q_pos.shape[-1]))
