"""How attention and feed-forward make a layer."""

from torch import Tensor, nn

from ablatio import blocks
from ablatio.model.assembly import LayerParts
from ablatio.model.context import Context


@blocks.register("sequential", paper="arXiv:1706.03762")
class Sequential(nn.Module):
    """Attention, then feed-forward, each with its own norm and residual.  (B, T, D) -> same."""

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.self_attn, self.mlp = parts.attention(), parts.mlp()
        self.input_layernorm, self.post_attention_layernorm = parts.norms(), parts.norms()
        self.around_attention, self.around_mlp = parts.placement(), parts.placement()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.around_attention(x, lambda h: self.self_attn(h, ctx), self.input_layernorm)
        return self.around_mlp(x, lambda h: self.mlp(h, ctx), self.post_attention_layernorm)


@blocks.register("parallel", paper="arXiv:2204.02311")
class Parallel(nn.Module):
    """attention(norm(x)) + mlp(norm(x)) as one sublayer with one norm, as in GPT-J and PaLM.  (B, T, D) -> same."""

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.self_attn, self.mlp = parts.attention(), parts.mlp()
        self.input_layernorm = parts.norms()
        self.around = parts.placement()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.around(x, lambda h: self.self_attn(h, ctx) + self.mlp(h, ctx), self.input_layernorm)
