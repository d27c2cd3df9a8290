"""Models for `train_step.py`: ours, and peers of the same size.

Each maker takes a Shape and returns (module, loss), where loss(x, y) is the mean cross-entropy over all tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D_MODEL, N_LAYERS, N_HEADS = 384, 5, 6  # 8.85 M parameters in the layers; 10.4 M with 4096 tied embeddings
D_FF_GATED = 1024  # 3 * 384 * 1024 = 2 * 384 * 1536

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """One workload: `batch` rows of `length` tokens from a vocabulary of `vocab`."""

    vocab: int
    batch: int
    length: int


class NotInstalled(Exception):
    """Raised by a maker whose package is not installed."""


# Ours


def ours(shape: Shape, **parts: Any) -> tuple[nn.Module, Loss]:
    """Our model with these parts."""
    from ablatio.model.build import build_model
    from ablatio.model.example import Example
    from ablatio.registry.registry import REGISTRIES

    names = {"placement": "pre", "mlp": "dense", "attention": "mha", "block": "sequential", "architecture": "causal"}
    bias = bool(parts.pop("bias"))
    config: dict[str, Any] = {
        kind: {"name": name, **REGISTRIES[kind][name].defaults}
        for kind, name in (names | parts | {"init": "gpt2", "objective": "lm"}).items()
    }
    config["match"] = "params"
    config["model"] = {
        "d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS, "max_len": shape.length, "bias": bias,
    }  # fmt: skip
    model = build_model(config, shape.vocab)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        total, count, _ = model.loss(Example(x, y))
        return total / count

    return model, loss


def ours_gpt2(shape: Shape) -> tuple[nn.Module, Loss]:
    """Our model with the parts of GPT-2."""
    return ours(shape, norm="layernorm", activation="gelu", position="learned", bias=True)


def ours_llama(shape: Shape) -> tuple[nn.Module, Loss]:
    """Our model with the parts of Llama."""
    return ours(shape, norm="rmsnorm", activation="swiglu", position="rope", bias=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each layer with torch.compile: all layers share one compilation."""
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    for layer in layers:
        layer.compile()


# nanoGPT, its architecture in a few lines (github.com/karpathy/nanoGPT, MIT)


class NanoBlock(nn.Module):
    """One layer of nanoGPT."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.attn_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.c_fc, self.mlp_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, d = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(d, dim=2)
        q, k, v = (t.view(batch, length, self.heads, d // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).contiguous().view(batch, length, d))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """nanoGPT: learned positions, LayerNorm before each sublayer, GELU, tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(shape.vocab, D_MODEL), nn.Embedding(shape.length, D_MODEL)
        self.h = nn.ModuleList([NanoBlock(D_MODEL, N_HEADS) for _ in range(N_LAYERS)])
        self.ln_f = nn.LayerNorm(D_MODEL)
        self.lm_head = nn.Linear(D_MODEL, shape.vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits


def on_logits(model: nn.Module) -> tuple[nn.Module, Loss]:
    """Add the cross-entropy of full logits to a model that returns logits."""
    return model, lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def nanogpt(shape: Shape) -> tuple[nn.Module, Loss]:
    """The architecture of nanoGPT in plain torch."""
    return on_logits(NanoGPT(shape))


# transformers


def of_transformers(model: nn.Module) -> tuple[nn.Module, Loss]:
    """A model of transformers with its own loss."""
    # `shift_labels` are targets that are shifted already, so that all tokens count, as for the other contenders.
    return model, lambda x, y: model(x, labels=y, shift_labels=y, use_cache=False).loss


def transformers_gpt2(shape: Shape, activation: str = "gelu") -> tuple[nn.Module, Loss]:
    """transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": shape.vocab, "n_positions": shape.length, "n_embd": D_MODEL, "n_layer": N_LAYERS}
    config = GPT2Config(**sizes, n_head=N_HEADS, activation_function=activation, attn_implementation="sdpa", **off)
    return of_transformers(GPT2LMHeadModel(config))


def transformers_gpt2_default(shape: Shape) -> tuple[nn.Module, Loss]:
    """transformers' GPT-2 with its default activation, gelu_new."""
    return transformers_gpt2(shape, "gelu_new")


def transformers_llama(shape: Shape) -> tuple[nn.Module, Loss]:
    """transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=D_MODEL,
        intermediate_size=D_FF_GATED,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        max_position_embeddings=shape.length,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return of_transformers(LlamaForCausalLM(config))


# Optional packages


def litgpt_llama(shape: Shape) -> tuple[nn.Module, Loss]:
    """litgpt's Llama."""
    try:
        from litgpt.config import Config
        from litgpt.model import GPT
    except ImportError as error:
        raise NotInstalled("litgpt") from error
    config = Config(
        block_size=shape.length,
        padded_vocab_size=shape.vocab,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_embd=D_MODEL,
        intermediate_size=D_FF_GATED,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    return on_logits(model)


def x_transformers_llama(shape: Shape) -> tuple[nn.Module, Loss]:
    """x-transformers' decoder with the parts of Llama."""
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError as error:
        raise NotInstalled("x-transformers") from error
    layers = Decoder(
        dim=D_MODEL,
        depth=N_LAYERS,
        heads=N_HEADS,
        attn_dim_head=D_MODEL // N_HEADS,
        use_rmsnorm=True,
        rotary_pos_emb=True,
        rotary_emb_dim=D_MODEL // N_HEADS,
        ff_glu=True,
        ff_swish=True,
        ff_mult=D_FF_GATED / D_MODEL,
        ff_no_bias=True,
        attn_flash=True,
    )
    sizes = {"num_tokens": shape.vocab, "max_seq_len": shape.length, "use_abs_pos_emb": False, "tie_embedding": True}
    return on_logits(TransformerWrapper(attn_layers=layers, **sizes))


Maker = Callable[[Shape], tuple[nn.Module, Loss]]
FAMILIES: dict[str, dict[str, Maker]] = {
    "gpt2": {
        "ablatio": ours_gpt2,
        "nanoGPT": nanogpt,
        "transformers GPT-2, erf-GELU": transformers_gpt2,
        "transformers GPT-2, gelu_new": transformers_gpt2_default,
    },
    "llama": {
        "ablatio": ours_llama,
        "transformers Llama": transformers_llama,
        "litgpt": litgpt_llama,
        "x-transformers": x_transformers_llama,
    },
}
