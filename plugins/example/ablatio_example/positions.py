"""Gaussian attention windows (Guo, Zhang & Liu 2019, doi:10.1609/aaai.v33i01.33016489)."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, positions


@positions.register("gaussian", paper="doi:10.1609/aaai.v33i01.33016489")
class Gaussian(nn.Module):
    """logits[h, t, s] += -(t - s)^2 / (2 sigma_h^2): a Gaussian prior on attention around each query.

    sigma_h, the width of head h in tokens, starts at `sigma` 2^h and is a parameter if `trained`.
    """

    log_sigma: Tensor

    def __init__(
        self,
        n_heads: int,
        *,
        sigma: Annotated[float, Positive, "width of the first head, in tokens"] = 8.0,
        trained: Annotated[bool, "train the widths"] = True,
    ) -> None:
        super().__init__()
        start = math.log(sigma) + math.log(2) * torch.arange(n_heads)
        if trained:
            self.log_sigma = nn.Parameter(start)
        else:
            self.register_buffer("log_sigma", start, persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos[..., :, None] - k_pos[..., None, :]).to(self.log_sigma.dtype)  # (T, S) or (B, T, S)
        sigma = self.log_sigma.exp()[:, None, None]  # (H, 1, 1)
        return -((distance.unsqueeze(-3) / sigma) ** 2) / 2  # (..., H, T, S)
