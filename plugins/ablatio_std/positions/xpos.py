"""Rotary positions whose scores fade with distance."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule
from ablatio_std.positions._common import frequencies, turn

Turns = tuple[Tensor, Tensor, Tensor, Tensor]


@positions.register("xpos", paper="arXiv:2212.10554")
class XPos(nn.Module):
    """rope with pair i of q_t times z_i^(t/S) and of k_s times z_i^(-s/S): scores fade as z_i^((t - s)/S).

    z_i = (2i/d + gamma) / (1 + gamma) for pairs i = 0 ... d/2 - 1; S is `scale_base`.  (B, H, T, d_head) each -> same.
    Only t - s counts, so positions are taken from the middle of `model.max_len`; in float32 the powers are exact for
    30,000 positions on both sides of it, and stay as they are beyond.
    """

    def __init__(
        self,
        d_head: int,
        max_len: int,
        *,
        base: Annotated[float, Range(1, open_low=True)] = 10000.0,
        scale_base: Annotated[float, Positive, "tokens over which pair i fades by its factor z_i"] = 512.0,
        gamma: Annotated[float, Positive, "how much of the fastest pair is left after scale_base tokens"] = 0.4,
    ) -> None:
        super().__init__()
        self.width, self.base, self.middle = d_head, base, max_len // 2
        self.scale_base, self.gamma = scale_base, gamma

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> Turns:
        """Cosines and sines for queries, and for keys: (T, d/2), or (B, 1, T, d/2) for all heads of a row."""
        w = frequencies(self.width, self.base, pos.device)
        z = (torch.arange(0, self.width, 2, dtype=w.dtype, device=w.device) / self.width + self.gamma) / (
            1 + self.gamma
        )
        limit = 0.9 * math.log(torch.finfo(dtype).max)  # beyond it the power is no number of this type
        power = ((pos[..., None].double() - self.middle) / self.scale_base * z.log()).clamp(-limit, limit)
        turned = torch.polar(power.exp(), pos[..., None] * w), torch.polar((-power).exp(), pos[..., None] * w)
        q, k = (t[:, None] if pos.dim() == 2 else t for t in turned)
        return q.real.to(dtype), q.imag.to(dtype), k.real.to(dtype), k.imag.to(dtype)

    def rotate(self, q: Tensor, k: Tensor, pos: Tensor | Turns) -> tuple[Tensor, Tensor]:
        prepared = self.prepare(pos, q.dtype, pos) if isinstance(pos, Tensor) else pos
        q_cos, q_sin, k_cos, k_sin = (t.to(q.dtype) for t in prepared)
        return turn(q, q_cos, q_sin), turn(k, k_cos, k_sin)


rule(
    when="position.name == 'xpos' and model.d_head % 2 == 1",
    why="xpos turns pairs, so model.d_head must be even: {model.d_head}",
    fix="model.d_head={model.d_head + 1}",
)
rule(
    when="position.name == 'xpos' and facts.architecture.mask != 'causal'",
    why="xpos lets scores grow with the distance to keys after the query, and architecture={architecture.name} shows "
    "them",
    fix="position=rope",
)
