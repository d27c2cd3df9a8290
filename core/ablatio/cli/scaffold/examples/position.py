from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, positions


@positions.register("decay", paper="arXiv:2108.12409")
class Decay:
    """logits[t, s] += -slope * |t - s|, one slope for all heads.  Positions are (T,) or (B, T)."""

    def __init__(self, n_heads: int, *, slope: Annotated[float, Positive, "nats per token"] = 0.1) -> None:
        self.n_heads, self.slope = n_heads, slope

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos[..., :, None] - k_pos[..., None, :]).abs().to(torch.get_default_dtype())  # (..., T, S)
        return (-self.slope * distance).unsqueeze(-3).repeat_interleave(self.n_heads, -3)  # (..., H, T, S)
