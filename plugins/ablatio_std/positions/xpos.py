"""Rotary positions whose logits decay with distance."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, Schedulable, positions, rule
from ablatio.model.number_format import precise
from ablatio_std.positions._common import frequencies, rotate_pairs

Tables = tuple[Tensor, Tensor, Tensor, Tensor]  # cosines and sines for queries, then for keys


@positions.register("xpos", paper="arXiv:2212.10554")
class XPos(nn.Module):
    """rope with pair i of q_t times z_i^(t/S) and of k_s times z_i^(-s/S): its product decays as z_i^((t - s)/S).

    z_i = (2i/d + gamma) / (1 + gamma) for pairs i = 0 ... d/2 - 1; S is `scale_base`.  q and k, (B, H, T, d_head) each
    -> same.  As only t - s matters, positions are counted from the middle of `model.max_len`; in float32 the powers are
    exact up to 30,000 positions from it on both sides, and constant beyond.
    """

    splits_heads = True

    def __init__(
        self,
        d_head: int,
        max_len: int,
        *,
        base: Annotated[float, Range(1, open_low=True), Schedulable()] = 10000.0,
        scale_base: Annotated[float, Positive, "distance S in tokens over which pair i decays by z_i"] = 512.0,
        gamma: Annotated[float, Positive, "a smaller gamma makes the fastest pair decay faster"] = 0.4,
    ) -> None:
        super().__init__()
        self.width, self.base, self.middle = d_head, base, max_len // 2
        self.scale_base, self.gamma = scale_base, gamma

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> Tables:
        """Scaled cosines and sines for queries, and for keys: (T, d/2), or (B, 1, T, d/2) for positions (B, T)."""
        w = frequencies(self.width, self.base, pos.device)
        z = (torch.arange(0, self.width, 2, dtype=w.dtype, device=w.device) / self.width + self.gamma) / (
            1 + self.gamma
        )
        limit = 0.9 * math.log(torch.finfo(dtype).max)  # beyond it the power would overflow this dtype
        power = ((pos[..., None].double() - self.middle) / self.scale_base * z.log()).clamp(-limit, limit)
        # Decay and rotation are one complex factor exp(power + i angle); keys get the inverse decay.
        factors = torch.polar(power.exp(), pos[..., None] * w), torch.polar((-power).exp(), pos[..., None] * w)
        q, k = (t[:, None] if pos.dim() == 2 else t for t in factors)
        return q.real.to(dtype), q.imag.to(dtype), k.real.to(dtype), k.imag.to(dtype)

    def rotate(self, q: Tensor, k: Tensor, pos: Tensor | Tables) -> tuple[Tensor, Tensor]:
        prepared = self.prepare(pos, precise(q.dtype), pos) if isinstance(pos, Tensor) else pos
        q_cos, q_sin, k_cos, k_sin = prepared
        return rotate_pairs(q, q_cos, q_sin), rotate_pairs(k, k_cos, k_sin)


rule(
    when="position.name == 'xpos' and model.d_head % 2 == 1",
    why="xpos rotates pairs of features, so model.d_head={model.d_head} must be even",
    fix="model.d_head={model.d_head + 1}",
)
rule(
    when="position.name == 'xpos' and facts.architecture.mask != 'causal'",
    why="with xpos logits grow with the distance to keys after the query, and with architecture={architecture.name} "
    "queries attend to such keys",
    fix="position=rope",
)
