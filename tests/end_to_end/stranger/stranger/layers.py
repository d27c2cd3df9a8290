"""What stands in a layer: norm, activation, mlp, attention, position, placement, block."""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, activations, attentions, blocks, mlps, norms, placements, positions


@norms.register("powernorm", paper="arXiv:2003.07845")
class PowerNorm(nn.Module):
    """y = g x / (mean |x|^p + eps)^(1/p).  (..., D) -> same."""

    def __init__(self, d_model: int, *, p: Annotated[float, Positive] = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps, self.weight = p, eps, nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        power = (x.abs() + 1e-9).pow(self.p).mean(-1, keepdim=True) + self.eps
        return self.weight * x / power.pow(1 / self.p)


@activations.register("snake", paper="arXiv:2006.08195")
def snake(x: Tensor, *, a: Annotated[float, Positive, "frequency"] = 1.0) -> Tensor:
    """y = x + sin(a x)^2 / a."""
    return x + (a * x).sin().square() / a


@mlps.register("residual_mlp", paper="arXiv:1512.03385")
class ResidualMLP(nn.Module):
    """share * x + down(phi(up(x))).  (B, T, D) -> same."""

    def __init__(self, d_model: int, d_ff: int, activation: nn.Module, *, share: float = 0.1) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)
        self.activation, self.share = activation, share

    def forward(self, x: Tensor, ctx: object) -> Tensor:
        return self.share * x + self.down_proj(self.activation(self.up_proj(x)))


@attentions.register("cosine_attention", paper="arXiv:2010.04245")
class CosineAttention(nn.Module):
    """softmax(sharpness * cos(q_t, k_s)) v_s over s <= t.  (B, T, D) -> same."""

    caches, takes_bias, takes_segments, bidirectional = False, False, False, False

    def __init__(
        self, d_model: int, d_head: int, n_heads: int, *, sharpness: Annotated[float, Positive] = 10.0
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, n_heads * d_head, bias=False) for _ in "qkv")
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)
        self.n_heads, self.sharpness = n_heads, sharpness

    def forward(self, x: Tensor, ctx: object) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = self.sharpness * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)  # (B, H, T, T)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = logits.masked_fill(future, float("-inf")).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(-2))


@positions.register("log_distance", paper="arXiv:2205.09921")
class LogDistance:
    """logits[t, s] -= slope * log(1 + |t - s|)."""

    def __init__(self, n_heads: int, *, slope: Annotated[float, Positive] = 0.5) -> None:
        self.n_heads, self.slope = n_heads, slope

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos[..., :, None] - k_pos[..., None, :]).abs().to(torch.get_default_dtype())
        return (-self.slope * distance.log1p()).unsqueeze(-3).repeat_interleave(self.n_heads, -3)


@placements.register("half_step", paper="arXiv:1906.02762")
class HalfStep:
    """x + share * f(norm(x)).  (B, T, D) -> same."""

    gain = 1.0

    def __init__(self, *, share: Annotated[float, Positive] = 0.7) -> None:
        self.share = share

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return x + self.share * sublayer(norm(x))


@blocks.register("mlp_twice", paper="arXiv:1906.02762")
class MlpTwice(nn.Module):
    """Feed-forward, attention, feed-forward, each with its norm and residual.  (B, T, D) -> same."""

    def __init__(self, parts: object) -> None:
        super().__init__()
        self.first, self.self_attn, self.second = parts.mlp(), parts.attention(), parts.mlp()
        self.norms = nn.ModuleList([parts.norms("mlp"), parts.norms("attention"), parts.norms("mlp")])
        self.around_first, self.around_attention = parts.placement("mlp"), parts.placement("attention")
        self.around_second = parts.placement("mlp")

    def forward(self, x: Tensor, ctx: object) -> Tensor:
        x = self.around_first(x, lambda h: self.first(h, ctx), self.norms[0])
        x = self.around_attention(x, lambda h: self.self_attn(h, ctx), self.norms[1])
        return self.around_second(x, lambda h: self.second(h, ctx), self.norms[2])
