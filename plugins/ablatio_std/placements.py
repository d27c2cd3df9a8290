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
    """norm(alpha x + f(x)), and the init multiplies value, output and feed-forward matrices with beta (`gain`).

    N encoder and M decoder layers (the paper's table):
    one stack of M layers            alpha = (2 M)^(1/4)            beta = (8 M)^(-1/4)
    the encoder beside a decoder     alpha = 0.81 (N^4 M)^(1/16)    beta = 0.87 (N^4 M)^(-1/16)
    the decoder beside an encoder    alpha = (3 M)^(1/4)            beta = (12 M)^(-1/4)
    """

    n_norms = 1
    final_norm = False

    def __init__(self, side: str, encoder_layers: int, decoder_layers: int) -> None:
        n, m = encoder_layers, decoder_layers
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
    why="deepnorm's alpha and beta are derived for two sublayers in sequence; block={block.name} adds them up",
    fix="block=sequential",
)
