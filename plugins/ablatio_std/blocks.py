"""Blocks: how attention and feed-forward form a layer; with an encoder, cross-attention comes between them."""

import torch
from torch import Tensor, nn

from ablatio import blocks, rule
from ablatio.model.builder import LayerParts
from ablatio.model.context import Context


@blocks.register("sequential", paper="arXiv:1706.03762")
class Sequential(nn.Module):
    """Attention, then feed-forward, each with its own norm and residual.  (B, T, D) -> same.

    A layer without one of them (`mlp=none`) has neither its norm nor its residual connection.
    """

    cross, optional_sublayers = True, True

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        attention, mlp = parts.attention, parts.mlp
        self.self_attn, self.mlp = attention and attention(), mlp and mlp()
        self.input_layernorm = attention and parts.norms("attention")
        self.post_attention_layernorm = mlp and parts.norms("mlp")
        self.around_attention = attention and parts.placement("attention")
        self.around_mlp = mlp and parts.placement("mlp")
        self.cross_attn = parts.cross() if parts.cross else None
        if parts.cross:
            self.cross_layernorm, self.around_cross = parts.norms("cross"), parts.placement("cross")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.self_attn is not None:
            x = self.around_attention(x, lambda h: self.self_attn(h, ctx), self.input_layernorm)
        if self.cross_attn is not None:
            x = self.around_cross(x, lambda h: self.cross_attn(h, ctx.cross), self.cross_layernorm)  # type: ignore[misc]
        if self.mlp is not None:
            x = self.around_mlp(x, lambda h: self.mlp(h, ctx), self.post_attention_layernorm)
        return x


@blocks.register("unet", paper="arXiv:2209.12152")
class UNet(Sequential):
    """Sequential, with skips between mirrored layers: layer n - 1 - l reads x + w_l h_l, h_l output of layer l.

    The scalars w_l are learned and start at `initial`.  U-ViT combines the two by a linear map of both; the weighted
    sum is that of modded-nanogpt.  (B, T, D) -> same.
    """

    whole_stack = True

    def __init__(self, parts: LayerParts, *, initial: float = 1.0) -> None:
        super().__init__(parts)
        half, self.layer, self.mirror = parts.n_layers // 2, parts.layer, parts.n_layers - 1 - parts.layer
        self.gives, takes = parts.layer < half, self.mirror < half
        self.skip = nn.Parameter(torch.tensor([initial])) if takes else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        # The sum comes before the layer's own norms, as in modded-nanogpt.
        if self.skip is not None:
            x = x + self.skip * ctx.passed_on(("skip", self.mirror), lambda: x)
        y = super().forward(x, ctx)
        return ctx.passed_on(("skip", self.layer), lambda: y) if self.gives else y


rule(
    when="block.name == 'unet' and model.distinct_layers is not None and model.distinct_layers < model.n_layers",
    why="only the second half of the layers has weights for skips, so the layers cannot share all weights, as "
    "model.distinct_layers={model.distinct_layers} of model.n_layers={model.n_layers} asks for",
    fix="model.distinct_layers=null",
    where="model.distinct_layers",
)


@blocks.register("macaron", paper="arXiv:1906.02762")
class Macaron(nn.Module):
    """Half a feed-forward step, attention, half a feed-forward step: x + f(x) / 2, x + attention(x), x + g(x) / 2.

    The two feed-forward parts have separate weights and the width d_ff each.  (B, T, D) -> same.
    """

    cross, optional_sublayers = True, True

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        attention, mlp = parts.attention, parts.mlp
        self.mlp_before, self.self_attn, self.mlp = mlp and mlp(), attention and attention(), mlp and mlp()
        self.mlp_before_layernorm = mlp and parts.norms("mlp")
        self.around_mlp_before = mlp and parts.placement("mlp")
        self.input_layernorm = attention and parts.norms("attention")
        self.around_attention = attention and parts.placement("attention")
        self.post_attention_layernorm, self.around_mlp = mlp and parts.norms("mlp"), mlp and parts.placement("mlp")
        self.cross_attn = parts.cross() if parts.cross else None
        if parts.cross:
            self.cross_layernorm, self.around_cross = parts.norms("cross"), parts.placement("cross")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.mlp_before is not None:
            # Half a step each: the two halves together are one step of the residual stream's differential equation.
            x = self.around_mlp_before(x, lambda h: 0.5 * self.mlp_before(h, ctx), self.mlp_before_layernorm)
        if self.self_attn is not None:
            x = self.around_attention(x, lambda h: self.self_attn(h, ctx), self.input_layernorm)
        if self.cross_attn is not None:
            x = self.around_cross(x, lambda h: self.cross_attn(h, ctx.cross), self.cross_layernorm)  # type: ignore[misc]
        if self.mlp is not None:
            x = self.around_mlp(x, lambda h: 0.5 * self.mlp(h, ctx), self.post_attention_layernorm)
        return x


@blocks.register("parallel", paper="arXiv:2204.02311")
class Parallel(nn.Module):
    """attention(norm(x)) + mlp(norm(x)) as one sublayer.  (B, T, D) -> same.

    Both share one norm as in GPT-J and PaLM; with `own_norms` each has its own as in GPT-NeoX (arXiv:2204.06745).
    """

    cross, joint_sublayer, optional_sublayers = True, True, True

    def __init__(self, parts: LayerParts, *, own_norms: bool = False) -> None:
        super().__init__()
        self.self_attn = parts.attention() if parts.attention else None
        self.mlp = parts.mlp() if parts.mlp else None
        self.input_layernorm = parts.norms("both")
        self.post_attention_layernorm = parts.norms("mlp") if own_norms and self.mlp is not None else None
        self.around = parts.placement("both")
        self.cross_attn = parts.cross() if parts.cross else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        def both(h: Tensor) -> Tensor:
            found = [self.self_attn(h, ctx)] if self.self_attn is not None else []
            if self.cross_attn is not None:
                found.append(self.cross_attn(h, ctx.cross))
            if self.mlp is not None:
                own = self.post_attention_layernorm
                # x and not h: the second norm reads the layer's input, too.
                found.append(self.mlp(h if own is None else own(x), ctx))
            return sum(found[1:], found[0])

        return self.around(x, both, self.input_layernorm)


rule(
    when="block.name == 'parallel' and block.own_norms and placement.name != 'pre'",
    why="block.own_norms normalizes the layer's input separately for attention and feed-forward, but "
    "placement={placement.name} does not normalize the layer's input",
    fix="placement=pre",
)
