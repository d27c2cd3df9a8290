from torch import Tensor, nn

from ablatio import blocks
from ablatio.model.builder import LayerParts
from ablatio.model.context import Context


@blocks.register("mlp_first", paper="arXiv:1911.03864")
class MlpFirst(nn.Module):
    """Feed-forward, then attention, each with its own norm and residual.  (B, T, D) -> same."""

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.mlp, self.self_attn = parts.mlp(), parts.attention()
        self.mlp_norm, self.attention_norm = parts.norms("mlp"), parts.norms("attention")
        self.around_mlp, self.around_attention = parts.placement("mlp"), parts.placement("attention")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.around_mlp(x, lambda h: self.mlp(h, ctx), self.mlp_norm)
        return self.around_attention(x, lambda h: self.self_attn(h, ctx), self.attention_norm)
