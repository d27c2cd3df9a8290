"""A stack of blocks between an embedding and a head; the names of the parameters are LLaMA's."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.cache import KVCache
from ablatio.model.context import Context, Example, MaskKind, make_context
from ablatio.model.loss import Tie, compute_dtype, linear_cross_entropy, token_losses

if TYPE_CHECKING:
    from ablatio.model.assembly import Assembly


class Stack(nn.Module):
    """Embedding, position, layers and the last norm: tokens (B, T) -> hidden states (B, T, D)."""

    def __init__(self, assembly: "Assembly", mask: MaskKind) -> None:
        super().__init__()
        dims = assembly.dims
        self.mask: MaskKind = mask
        self.max_len = dims.max_len
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.d_model)
        self.position = assembly.position(causal=mask == "causal")
        self.dropout = dims.dropout
        self.layers = nn.ModuleList([assembly.block(i) for i in range(dims.n_layers)])
        self.norm = assembly.final_norm()

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        losses: list[Tensor] | None = None,
        tie: Tie | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D).  segments (B, T): documents packed in a row; losses: collects the layers' own."""
        x = self.embed_tokens(tokens) if tie is None else tie.embed(self.embed_tokens.weight, tokens)
        ctx = self._context(tokens, segments, cache, x.dtype)
        if hasattr(self.position, "embed"):
            x = self.position.embed(x, ctx.q_pos)
        x = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        for layer in self.layers:
            x = layer(x, ctx)
        if cache is not None:
            cache.advance(tokens.shape[1])
        if losses is not None:
            losses.extend(ctx.losses)
        hidden: Tensor = self.norm(x) if self.norm is not None else x
        return hidden

    def _context(self, tokens: Tensor, segments: Tensor | None, cache: KVCache | None, dtype: torch.dtype) -> Context:
        length = tokens.shape[1] + (cache.length if cache is not None else 0)
        if length > self.max_len and not getattr(self.position, "extends", True):
            raise UserError(
                f"{length} tokens came; this model's position knows model.max_len={self.max_len} and no more. "
                f"Train with model.max_len={length}, or choose position=alibi or position=rope"
            )
        dtype = compute_dtype(tokens.device, dtype)
        return make_context(tokens, self.position, self.mask, segments, cache, dtype)


class LanguageModel(nn.Module):
    """A stack and its output head (`tied`: the embedding's own matrix)."""

    def __init__(self, assembly: "Assembly", mask: MaskKind) -> None:
        super().__init__()
        dims = assembly.dims
        self.model = Stack(assembly, mask)
        self.lm_head = nn.Linear(dims.d_model, dims.vocab_size, bias=False)
        if dims.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V): what decoding needs; training goes through `loss` and never makes them."""
        logits: Tensor = self.lm_head(self.model(tokens, segments, cache))
        return logits

    def loss(self, example: Example) -> tuple[Tensor, Tensor]:
        """(sum of the weighted losses in nats plus the layers' own, sum of the weights)."""
        losses: list[Tensor] = []
        tie = Tie.of(self.model.embed_tokens, self.lm_head.weight)
        hidden = self.model(example.inputs, example.segments, losses=losses, tie=tie)
        weights = None if example.weights is None else example.weights.flatten()
        targets = example.targets.flatten()
        total = linear_cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, targets, weights, tie=tie)
        count = total.new_tensor(float(len(targets))) if weights is None else weights.sum().to(total.dtype)
        for extra in losses:
            total = total + extra * count
        return total, count

    @torch.no_grad()
    def token_losses(self, example: Example) -> Tensor:
        """The loss of each target in nats: (B, T)."""
        hidden = self.model(example.inputs, example.segments)
        return token_losses(hidden.flatten(0, 1), self.lm_head.weight, example.targets.flatten()).view_as(
            example.targets
        )
