"""LLaMA-Adapter: prompts in the upper layers with a gate that is initialized to zero."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, pefts, rule
from ablatio.model.attention.kernels import merge_heads, repeated
from ablatio.model.attention.softmax_attention import SoftmaxAttention
from ablatio.model.context import Context
from ablatio.model.peft.adapters import Adapter, LayerPeft, Targets, adapted, targets_of
from ablatio_std.pefts._common import ToPeft, to_peft


class GatedPrompt(Adapter):
    """o(heads(x) + g softmax(q P_k^T) P_v), P_k and P_v the layer's own projections of the prompt P (n, D)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(tokens, width))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, layer: Any, x: Tensor, ctx: Context) -> Tensor:
        q = layer.queries(x)
        # Rotated queries on prompts without a position, as in the authors' code.
        q = ctx.rotate(q, q, layer.layer)[0]  # (B, H, T, d_head)
        prompts = layer.keys_values(self.prompt[None], ctx)
        k, v = (repeated(y, q.shape[1]).expand(len(q), -1, -1, -1) for y in prompts)  # (B, H, n, d_head)
        # No mask: every token of every document sees the whole prompt.
        from_prompt = F.scaled_dot_product_attention(q, k, v, scale=layer.scale)  # (B, H, T, d_head)
        y: Tensor = layer.project(layer.heads(x, ctx) + self.gate * merge_heads(from_prompt))
        return y


@pefts.register("llama_adapter", paper="arXiv:2303.16199")
class LlamaAdapter(LayerPeft):
    """o(softmax(q k^T) v + g softmax(q P_k^T) P_v), g initialized to 0; P_k, P_v: keys and values of learned prompts.

    With a separate softmax the prompts take no weight from the text.  The paper adapts the upper layers only.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("self_attn",),
        tokens: Annotated[int, Positive, "number of prompt vectors in each layer"] = 10,
        layers: Annotated[int | None, Positive, "number of last targets to adapt; null: all"] = None,
    ) -> None:
        super().__init__(targets)
        self.tokens, self.layers = tokens, layers

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        return isinstance(layer, SoftmaxAttention)

    def apply(self, model: nn.Module, seed: int) -> None:
        if self.layers is not None:
            self.targets = tuple(targets_of(model, self.targets, self.fits))[-self.layers :]
        super().apply(model, seed)

    def adapter(self, layer: Any, path: str) -> GatedPrompt:
        return GatedPrompt(self.tokens, layer.q_proj.in_features)

    def to_peft(self, model: nn.Module) -> ToPeft:
        adapters = [(path, a) for path, _, a in adapted(model) if isinstance(a, GatedPrompt)]
        named = {f"{path}.adaption_{name}": p for path, a in adapters for name, p in (("prompt", a.prompt[None]),
                 ("gate", a.gate))}  # fmt: skip
        layers = {"": {f"base_model.model.{name}": tensor for name, tensor in named.items()}}
        return to_peft("ADAPTION_PROMPT", layers, None, adapter_len=self.tokens, adapter_layers=len(adapters))


rule(
    when="peft.name == 'llama_adapter' and not facts.attention.prefix",
    why="peft=llama_adapter needs the queries, keys and values of softmax attention, and attention={attention.name} "
    "has none",
    fix="attention=mha",
    where="peft",
)
