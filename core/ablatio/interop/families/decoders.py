"""Decoder-only families whose layers are equal: LLaMA, Qwen2, GPT-2, OPT, BLOOM, GPT-NeoX."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ablatio.interop.families.base import Family
from ablatio.interop.families.weights import (
    ATTENTION,
    WeightMap,
    after_unused_rows,
    fused_by_head,
    join_transposed,
    split_transposed,
)

LAYER = "model.layers.#"
QKV = tuple(f"{LAYER}.self_attn.{name}" for name in ATTENTION)
COMMON = {"placement": ("pre",), "mlp": ("dense",), "architecture": ("causal",)}
PLAIN = ("relu", "gelu", "silu", "relu2", "quick_gelu", "mish")


class Llama(Family):
    """LLaMA: RMSNorm, gated MLP, RoPE, any number of key-value heads, with or without biases."""

    model_type, class_name, plain_head = "llama", "LlamaForCausalLM", False
    parts = COMMON | {
        "norm": ("rmsnorm",),
        "activation": ("swiglu", "geglu", "reglu"),
        "position": ("rope",),
        "attention": ("mha", "gqa", "mqa"),
        "block": ("sequential",),
    }
    free: ClassVar[Sequence[str]] = (
        "norm.eps", "activation.approximate", "position.base", "position.layout", "attention.n_kv_heads",
    )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Return the entries of `LlamaConfig`."""
        d, heads = self.dims, self.config["attention"]
        return {
            "hidden_size": d.d_model,
            "intermediate_size": self.builder.d_ff,
            "num_hidden_layers": d.n_layers,
            "num_attention_heads": d.n_heads,
            "num_key_value_heads": {"mha": d.n_heads, "mqa": 1}.get(heads["name"]) or heads["n_kv_heads"],
            "head_dim": d.head_width,
            "hidden_act": self.activation,
            "max_position_embeddings": d.max_len,
            "rms_norm_eps": self.knob("norm.eps"),
            "rope_parameters": {"rope_type": "default", "rope_theta": self.knob("position.base")},
            "attention_bias": d.bias,
            "mlp_bias": d.bias,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `LlamaForCausalLM`, whose names ablatio uses, too."""
        names = [f"self_attn.{n}" for n in (*ATTENTION, "o_proj")] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
        for name in (*names, "input_layernorm", "post_attention_layernorm"):
            yield WeightMap(f"{LAYER}.{name}", f"{LAYER}.{name}")
        for name in ("model.embed_tokens", "model.norm", "lm_head"):
            yield WeightMap(name, name)


class Qwen2(Llama):
    """Qwen2: LLaMA with biases on queries, keys and values only."""

    model_type, class_name = "qwen2", "Qwen2ForCausalLM"
    fixed: ClassVar = {"attention.qkv_bias": True}

    def own_incompatibilities(self) -> Iterator[str]:
        """Biases other than those of queries, keys and values."""
        if self.dims.bias:
            yield "model.bias=true"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `Qwen2Config`, which has no switches for biases."""
        return {k: v for k, v in super().settings().items() if k not in ("attention_bias", "mlp_bias")}


class GPT2(Family):
    """GPT-2: LayerNorm, GELU, learned positions, biases everywhere."""

    model_type, class_name = "gpt2", "GPT2LMHeadModel"
    parts = COMMON | {
        "norm": ("layernorm",),
        "activation": ("gelu",),
        "position": ("learned",),
        "attention": ("mha",),
        "block": ("sequential",),
    }
    free = ("norm.eps", "activation.approximate")

    def own_incompatibilities(self) -> Iterator[str]:
        """Layers without biases."""
        if not self.dims.bias:
            yield "model.bias=false"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `GPT2Config`."""
        d = self.dims
        return {
            "n_embd": d.d_model,
            "n_layer": d.n_layers,
            "n_head": d.n_heads,
            "n_positions": d.max_len,
            "n_inner": self.builder.d_ff,
            "activation_function": self.activation,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "embd_pdrop": d.dropout,
            "attn_pdrop": d.dropout,
            "resid_pdrop": d.dropout,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `GPT2LMHeadModel`; its matrices are transposed."""
        native = "transformer.h.#"
        yield WeightMap(QKV, f"{native}.attn.c_attn", join_transposed, split_transposed)
        yield WeightMap(f"{LAYER}.self_attn.o_proj", f"{native}.attn.c_proj", join_transposed, split_transposed)
        yield WeightMap(f"{LAYER}.mlp.up_proj", f"{native}.mlp.c_fc", join_transposed, split_transposed)
        yield WeightMap(f"{LAYER}.mlp.down_proj", f"{native}.mlp.c_proj", join_transposed, split_transposed)
        yield WeightMap(f"{LAYER}.input_layernorm", f"{native}.ln_1")
        yield WeightMap(f"{LAYER}.post_attention_layernorm", f"{native}.ln_2")
        yield WeightMap("model.embed_tokens", "transformer.wte")
        yield WeightMap("model.position.table", "transformer.wpe")
        yield WeightMap("model.norm", "transformer.ln_f")
        yield WeightMap("lm_head", "lm_head")


class OPT(Family):
    """OPT: LayerNorm, an activation without a gate, learned positions (after two unused rows of the table)."""

    model_type, class_name = "opt", "OPTForCausalLM"
    parts = GPT2.parts | {"activation": PLAIN}
    free = ("norm.eps", "activation.approximate")

    def own_incompatibilities(self) -> Iterator[str]:
        """An epsilon of the norms other than 1e-5, which `OPTConfig` cannot set."""
        if self.knob("norm.eps") != 1e-5:
            yield f"norm.eps={self.knob('norm.eps')} (it supports 1e-5)"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `OPTConfig`."""
        d = self.dims
        return {
            "hidden_size": d.d_model,
            "word_embed_proj_dim": d.d_model,
            "num_hidden_layers": d.n_layers,
            "num_attention_heads": d.n_heads,
            "ffn_dim": self.builder.d_ff,
            "max_position_embeddings": d.max_len,
            "activation_function": self.activation,
            "enable_bias": d.bias,
            "do_layer_norm_before": True,
            "dropout": d.dropout,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `OPTForCausalLM`."""
        native = "model.decoder.layers.#"
        for name in ATTENTION:
            yield WeightMap(f"{LAYER}.self_attn.{name}", f"{native}.self_attn.{name}")
        yield WeightMap(f"{LAYER}.self_attn.o_proj", f"{native}.self_attn.out_proj")
        yield WeightMap(f"{LAYER}.mlp.up_proj", f"{native}.fc1")
        yield WeightMap(f"{LAYER}.mlp.down_proj", f"{native}.fc2")
        yield WeightMap(f"{LAYER}.input_layernorm", f"{native}.self_attn_layer_norm")
        yield WeightMap(f"{LAYER}.post_attention_layernorm", f"{native}.final_layer_norm")
        yield WeightMap("model.embed_tokens", "model.decoder.embed_tokens")
        yield WeightMap("model.position.table", "model.decoder.embed_positions", *after_unused_rows(2))
        yield WeightMap("model.norm", "model.decoder.final_layer_norm")
        yield WeightMap("lm_head", "lm_head")


def _fused_layers(native: str, attention: str, d_head: int) -> Iterator[WeightMap]:
    """Layers derived from Megatron (BLOOM, GPT-NeoX): query, key and value of all heads in one matrix."""
    yield WeightMap(QKV, f"{native}.{attention}.query_key_value", *fused_by_head(d_head))
    yield WeightMap(f"{LAYER}.self_attn.o_proj", f"{native}.{attention}.dense")
    yield WeightMap(f"{LAYER}.mlp.up_proj", f"{native}.mlp.dense_h_to_4h")
    yield WeightMap(f"{LAYER}.mlp.down_proj", f"{native}.mlp.dense_4h_to_h")
    yield WeightMap(f"{LAYER}.input_layernorm", f"{native}.input_layernorm")
    yield WeightMap(f"{LAYER}.post_attention_layernorm", f"{native}.post_attention_layernorm")


class Bloom(Family):
    """BLOOM: LayerNorm, also after the embedding; tanh-GELU, d_ff = 4 d_model, ALiBi, biases everywhere."""

    model_type, class_name, embedding_norm = "bloom", "BloomForCausalLM", True
    parts = GPT2.parts | {"position": ("alibi",)}
    free = ("norm.eps",)
    fixed: ClassVar = {"activation.approximate": "tanh"}

    def own_incompatibilities(self) -> Iterator[str]:
        """Layers without biases, and an MLP whose width is not 4 d_model."""
        if not self.dims.bias:
            yield "model.bias=false"
        if self.builder.d_ff != 4 * self.dims.d_model:
            yield f"model.d_ff={self.builder.d_ff} (it supports 4 d_model)"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `BloomConfig`."""
        d = self.dims
        return {
            "hidden_size": d.d_model,
            "n_layer": d.n_layers,
            "n_head": d.n_heads,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "hidden_dropout": d.dropout,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `BloomForCausalLM`."""
        yield from _fused_layers("transformer.h.#", "self_attention", self.dims.head_width)
        yield WeightMap("model.embed_tokens", "transformer.word_embeddings")
        yield WeightMap("model.embed_norm", "transformer.word_embeddings_layernorm")
        yield WeightMap("model.norm", "transformer.ln_f")
        yield WeightMap("lm_head", "lm_head")


class GPTNeoX(Family):
    """GPT-NeoX: LayerNorm, RoPE on a fraction of each head, biases everywhere; parallel or sequential sublayers."""

    model_type, class_name = "gpt_neox", "GPTNeoXForCausalLM"
    parts = GPT2.parts | {"position": ("rope",), "activation": PLAIN, "block": ("sequential", "parallel")}
    free = ("norm.eps", "activation.approximate", "position.base", "position.fraction", "position.layout")
    fixed: ClassVar = {"block.own_norms": True}

    def own_incompatibilities(self) -> Iterator[str]:
        """Layers without biases."""
        if not self.dims.bias:
            yield "model.bias=false"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `GPTNeoXConfig`."""
        d = self.dims
        rope = {"rope_theta": self.knob("position.base"), "partial_rotary_factor": self.knob("position.fraction")}
        return {
            "hidden_size": d.d_model,
            "intermediate_size": self.builder.d_ff,
            "num_hidden_layers": d.n_layers,
            "num_attention_heads": d.n_heads,
            "max_position_embeddings": d.max_len,
            "hidden_act": self.activation,
            "layer_norm_eps": self.knob("norm.eps"),
            "rope_parameters": {"rope_type": "default", **rope},
            "use_parallel_residual": self.config["block"]["name"] == "parallel",
            "hidden_dropout": d.dropout,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `GPTNeoXForCausalLM`."""
        yield from _fused_layers("gpt_neox.layers.#", "attention", self.dims.head_width)
        yield WeightMap("model.embed_tokens", "gpt_neox.embed_in")
        yield WeightMap("model.norm", "gpt_neox.final_layer_norm")
        yield WeightMap("lm_head", "embed_out")
