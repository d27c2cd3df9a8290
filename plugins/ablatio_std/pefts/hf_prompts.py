"""Virtual tokens of the library peft before each text of a stack: soft prompts, and prefixes of keys and values."""

from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.stack import Stack, Virtual
from ablatio_std.pefts.prompts import VirtualPeft, shapes_of

KEYS_VALUES = ("prefix_tuning", "cartridge")


class EncodedTokens(Virtual):
    """Output of peft's encoder for n virtual tokens: embeddings (n, D), or keys and values of all layers in one row.

    shapes  {layer: (heads, d_head)} if the encoder returns keys and values; None if it returns embeddings
    """

    index: Tensor

    def __init__(self, encoder: nn.Module, tokens: int, shapes: dict[int, tuple[int, int]] | None, tasks: bool) -> None:
        super().__init__()
        self.encoder, self.tokens, self.shapes = encoder, tokens, shapes
        self.register_buffer("index", torch.arange(tokens)[None], persistent=False)
        self.task = {"task_ids": torch.zeros(1, dtype=torch.long)} if tasks else {}  # a run has one task

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        encoded = self.encoder(self.index, **{k: t.to(self.index.device) for k, t in self.task.items()})[0]
        if self.shapes is None:
            return stack.keys_values_of(encoded)
        heads, width = next(iter(self.shapes.values()))
        parts = encoded.view(self.tokens, 2 * len(self.shapes), heads, width).permute(1, 2, 0, 3)  # (2 L, H, n, d_head)
        return {layer: (parts[2 * i], parts[2 * i + 1]) for i, layer in enumerate(self.shapes)}


class PeftPrompts(VirtualPeft):
    """Virtual tokens of one of peft's prompt methods, with one of peft's encoders for each stack."""

    def __init__(self, method: str, config: Any, encoder: Any) -> None:
        super().__init__(config.num_virtual_tokens or 0)
        self.method, self.config, self.encoder = method, config, encoder

    def before(self, stack: Stack) -> EncodedTokens:
        config, shapes = self.config, None
        # One stack at a time: an encoder-decoder has virtual tokens of its own in each.
        config.num_transformer_submodules, config.token_dim, config.num_layers = 1, stack.d_model, stack.depth
        if self.method in KEYS_VALUES:
            shapes = shapes_of(stack)
            if len(set(shapes.values())) != 1:
                raise UserError(
                    f"peft's {self.method} needs layers with the same heads, and this model's (heads, d_head) are "
                    f"{sorted(set(shapes.values()))}\n    try: peft=prefix"
                )
            heads, width = next(iter(shapes.values()))
            # Key-value heads: peft's prefix has the width of keys, which is smaller than d_model with grouped queries.
            config.token_dim, config.num_attention_heads, config.num_layers = heads * width, heads, len(shapes)
        if getattr(config, "encoder_hidden_size", 0) is None:
            config.encoder_hidden_size = config.token_dim
        return EncodedTokens(self._encoder(stack), self.tokens, shapes, self.method == "multitask_prompt_tuning")

    def _encoder(self, stack: Stack) -> nn.Module:
        if self.method in (*KEYS_VALUES, "p_tuning"):
            encoder: nn.Module = self.encoder(self.config)
            return encoder
        table = nn.Embedding.from_pretrained(
            stack.embeddings_of(torch.arange(stack.embed_tokens.num_embeddings)).detach()
        )
        initialized: nn.Module = self.encoder(self.config, table)  # from embeddings of tokens
        return initialized
