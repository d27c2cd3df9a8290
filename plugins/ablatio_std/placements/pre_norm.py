"""Norms before the sublayer, and before its last projection; the residual stream itself is not normalized."""

import math

from torch import Tensor, nn

from ablatio import placements
from ablatio_std.placements._common import Sublayer


@placements.register("pre", paper="arXiv:2002.04745")
class PreNorm:
    """x + f(norm(x)), with a final norm after the last layer.  (B, T, D) -> same."""

    gain = 1.0

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + sublayer(norm(x))


@placements.register("scaled", paper="arXiv:2502.05795")
class LayerNormScaling:
    """x + f(norm(x) / sqrt(l)) in layer l = 1, 2, ...: limits the growth of the residual's variance with depth."""

    gain = 1.0

    def __init__(self, layer: int | None) -> None:
        # The final norm is built without a layer and is not scaled.
        self.factor = (1 if layer is None else layer + 1) ** -0.5

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + sublayer(norm(x) * self.factor)


@placements.register("normformer", paper="arXiv:2110.09456")
class NormFormer:
    """x + norm'(attention(norm(x))), then x + f(norm(x)) with a norm before f's last projection.  (B, T, D) -> same.

    The paper's third change, a learned scale for each attention head, is not part of this placement.
    """

    gain = 1.0
    n_norms, inner_norm = (2, 1), ("mlp",)

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        if not isinstance(norm, nn.ModuleList):
            return x + sublayer(norm(x))
        before, after = norm
        return x + after(sublayer(before(x)))  # type: ignore[no-any-return]


@placements.register("subln", paper="arXiv:2210.06423")
class SubLayerNorm:
    """x + f(norm(x)) with a second norm inside f, before its last projection (Magneto).  (B, T, D) -> same.

    The init multiplies value, output and feed-forward matrices by `gain`; with N encoder and M decoder layers:
    one stack of M layers            sqrt(log(2 M))
    the encoder beside a decoder     sqrt(log(3 M) log(2 N) / 3)
    the decoder beside an encoder    sqrt(log(3 M))
    The paper applies it to Xavier weights: init=xavier.
    """

    inner_norm = ("attention", "mlp")

    def __init__(self, side: str, encoder_layers: int, decoder_layers: int) -> None:
        n, m = encoder_layers, decoder_layers
        if not n or not m:
            self.gain = math.sqrt(math.log(2 * (n or m)))
        elif side == "encoder":
            self.gain = math.sqrt(math.log(3 * m) * math.log(2 * n) / 3)
        else:
            self.gain = math.sqrt(math.log(3 * m))

    def __call__(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return x + sublayer(norm(x))
