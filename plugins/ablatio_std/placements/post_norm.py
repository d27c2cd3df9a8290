"""Norms after the sublayer: on its output or on the residual stream."""

import torch
from torch import Tensor, nn

from ablatio import placements, rule
from ablatio_std.placements._common import Sublayer


@placements.register("post", paper="arXiv:1706.03762")
class PostNorm:
    """norm(x + f(x)), as in the original transformer.  (B, T, D) -> same."""

    final_norm = False
    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return norm(x + sublayer(x))


@placements.register("deepnorm", paper="arXiv:2203.00555")
class DeepNorm:
    """norm(alpha x + f(x)); the init multiplies value, output and feed-forward matrices by beta (`gain`).

    With N encoder and M decoder layers (the paper's table):
    one stack of M layers            alpha = (2 M)^(1/4)            beta = (8 M)^(-1/4)
    the encoder beside a decoder     alpha = 0.81 (N^4 M)^(1/16)    beta = 0.87 (N^4 M)^(-1/16)
    the decoder beside an encoder    alpha = (3 M)^(1/4)            beta = (12 M)^(-1/4)
    """

    final_norm = False

    def __init__(self, side: str, encoder_layers: int, decoder_layers: int) -> None:
        n, m = encoder_layers, decoder_layers
        # One stack: the formulas for two have the factor 0.81 and other powers even where a side is empty.
        if not n or not m:
            self.alpha, self.gain = (2 * (n or m)) ** 0.25, (8 * (n or m)) ** -0.25
        elif side == "encoder":
            self.alpha, self.gain = 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)
        else:
            self.alpha, self.gain = (3 * m) ** 0.25, (12 * m) ** -0.25

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return norm(self.alpha * x + sublayer(x))


rule(
    when="placement.name == 'deepnorm' and block.name != 'sequential'",
    why="deepnorm's alpha and beta are derived for two sublayers in sequence, and block={block.name} has a different "
    "structure",
    fix="block=sequential",
)


@placements.register("sandwich", paper="arXiv:2105.13290")
class Sandwich:
    """x + norm'(f(norm(x))): norms before and after the sublayer (CogView).  (B, T, D) -> same."""

    n_norms = 2
    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.ModuleList) -> Tensor:
        before, after = norm
        return x + after(sublayer(before(x)))  # type: ignore[no-any-return]


@placements.register("peri", paper="arXiv:2502.02732")
class Peri(Sandwich):
    """x + norm'(f(norm(x))), with norms after the embedding and after the last layer.  (B, T, D) -> same."""

    embedding_norm = True


@placements.register("reordered", paper="arXiv:2501.00656")
class Reordered:
    """x + norm(f(x)): only the sublayer's output is normalized (OLMo 2, before it Swin V2).  (B, T, D) -> same."""

    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + norm(sublayer(x))  # type: ignore[no-any-return]


@placements.register("hybrid", paper="arXiv:2503.04598")
class HybridNorm:
    """x + attention(x), then h + f(h) with h = norm(x) (HybridNorm).  (B, T, D) -> same.

    The input of the attention is not normalized.  The paper normalizes queries, keys and values instead:
    attention.qk_norm=rmsnorm and attention.v_norm=rmsnorm.
    """

    n_norms = (0, 1)
    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        if isinstance(norm, nn.ModuleList):  # empty: an attention, which has no norm (n_norms[0] = 0)
            return x + sublayer(x)
        h: Tensor = norm(x)
        return h + sublayer(h)


@placements.register("hybrid_star", paper="arXiv:2503.04598")
class HybridNormStar(HybridNorm):
    """hybrid, with x + f(norm(x)) for attention and feed-forward of the first layer (HybridNorm*)."""

    first_norms = (1, 1)

    def __init__(self, layer: int | None) -> None:
        self.first = layer == 0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + sublayer(norm(x)) if self.first else super().__call__(x, sublayer, norm)


rule(
    when="placement.name in ['hybrid', 'hybrid_star'] and attention.qk_norm == 'none'",
    why="placement={placement.name} normalizes queries, keys and values instead of the attention's input, and "
    "attention.qk_norm=none leaves queries and keys as they are",
    fix="attention.qk_norm=rmsnorm",
    where="attention.qk_norm",
)
rule(
    when="placement.name in ['hybrid', 'hybrid_star'] and attention.v_norm == 'none'",
    why="placement={placement.name} normalizes queries, keys and values instead of the attention's input, and "
    "attention.v_norm=none leaves the values as they are",
    fix="attention.v_norm=rmsnorm",
    where="attention.v_norm",
)


@placements.register("residual_dual", paper="arXiv:2304.14802")
class ResidualDual:
    """u' = norm(u + f(u)), v' = v + f(u) on two streams; u + norm(v) at the end (ResiDual).  (B, T, 2, D) -> same.

    u is the post-norm stream that sublayers read, v the sum of the embedding and all their outputs.
    """

    gain = 1.0

    def open(self, x: Tensor) -> Tensor:
        """Start both streams from x.  (B, T, D) -> (B, T, 2, D)."""
        return torch.stack([x, x], dim=-2)

    def close(self, x: Tensor, norm: nn.Module) -> Tensor:
        u, v = x.unbind(-2)
        return u + norm(v)  # type: ignore[no-any-return]

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        u, v = x.unbind(-2)
        y = sublayer(u)
        # v is never normalized on the way: it carries the gradient to the first layers, which post-norm alone loses.
        return torch.stack([norm(u + y), v + y], dim=-2)
