"""Where the norms stand around a sublayer."""

from collections.abc import Callable

from torch import Tensor, nn

from ablatio import placements, rule

Sublayer = Callable[[Tensor], Tensor]


@placements.register("pre", paper="arXiv:2002.04745")
class PreNorm:
    """x + f(norm(x)); the stack ends with a norm of its own.  (B, T, D) -> same."""

    n_norms = 1
    final_norm = True
    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + sublayer(norm(x))


@placements.register("post", paper="arXiv:1706.03762")
class PostNorm:
    """norm(x + f(x)), as in the first transformer.  (B, T, D) -> same."""

    n_norms = 1
    final_norm = False
    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return norm(x + sublayer(x))


@placements.register("deepnorm", paper="arXiv:2203.00555")
class DeepNorm:
    """norm(alpha x + f(x)) with alpha = (2 M)^(1/4) for a decoder of M layers.  (B, T, D) -> same.

    The init multiplies value, output and feed-forward matrices with beta = (8 M)^(-1/4) (`gain`).
    """

    n_norms = 1
    final_norm = False

    def __init__(self, n_layers: int) -> None:
        self.alpha = (2 * n_layers) ** 0.25
        self.gain = (8 * n_layers) ** -0.25

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return norm(self.alpha * x + sublayer(x))


rule(
    when="placement.name == 'deepnorm' and block.name != 'sequential'",
    why="deepnorm's alpha and beta are derived for two sublayers in sequence; block={block.name} adds them up",
    fix="block=sequential",
)
