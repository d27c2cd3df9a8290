"""Decoders alone: LLaMA, GPT-2, OPT, BLOOM, GPT-NeoX."""

from collections.abc import Iterator
from typing import Any, ClassVar

from ablatio.interop.families.base import Family
from ablatio.interop.families.weights import ATTENTION, Module, by_head, shifted, turned, turned_back

LAYER = "model.layers.#"
QKV = tuple(f"{LAYER}.self_attn.{name}" for name in ATTENTION)
COMMON = {"placement": ("pre",), "mlp": ("dense",), "architecture": ("causal",)}
PLAIN = ("relu", "gelu", "silu", "relu2", "quick_gelu", "mish")


class Llama(Family):
    """RMSNorm, gated units, RoPE; any number of key-value heads; biases or none."""

    model_type, class_name, plain_head = "llama", "LlamaForCausalLM", False
    parts = COMMON | {
        "norm": ("rmsnorm",),
        "activation": ("swiglu", "geglu", "reglu"),
        "position": ("rope",),
        "attention": ("mha", "gqa", "mqa"),
        "block": ("sequential",),
    }
    free = ("norm.eps", "activation.approximate", "position.base", "position.layout", "attention.n_kv_heads")

    def settings(self) -> dict[str, Any]:
        d, heads = self.dims, self.config["attention"]
        return {
            "hidden_size": d.d_model,
            "intermediate_size": self.made.d_ff,
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

    def modules(self) -> Iterator[Module]:
        names = [f"self_attn.{n}" for n in (*ATTENTION, "o_proj")] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
        for name in (*names, "input_layernorm", "post_attention_layernorm"):
            yield Module(f"{LAYER}.{name}", f"{LAYER}.{name}")
        for name in ("model.embed_tokens", "model.norm", "lm_head"):
            yield Module(name, name)


class Mistral(Llama):
    """LLaMA by another name, as long as no window slides over it."""

    model_type, class_name = "mistral", "MistralForCausalLM"


class Qwen2(Llama):
    """LLaMA with biases on queries, keys and values alone."""

    model_type, class_name = "qwen2", "Qwen2ForCausalLM"
    fixed: ClassVar = {"attention.qkv_bias": True}

    def own_misfits(self) -> Iterator[str]:
        if self.dims.bias:
            yield "model.bias=true"

    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in super().settings().items() if k not in ("attention_bias", "mlp_bias")}


class Qwen3(Llama):
    """LLaMA with an RMSNorm on the queries and keys of each head."""

    model_type, class_name = "qwen3", "Qwen3ForCausalLM"
    fixed: ClassVar = {"attention.qk_norm": "rmsnorm"}

    def own_misfits(self) -> Iterator[str]:
        if self.dims.bias:
            yield "model.bias=true"

    def modules(self) -> Iterator[Module]:
        yield from super().modules()
        for name in ("q_norm", "k_norm"):
            yield Module(f"{LAYER}.self_attn.{name}", f"{LAYER}.self_attn.{name}")


class GPT2(Family):
    """LayerNorm, GELU, trained vectors for positions, biases everywhere."""

    model_type, class_name = "gpt2", "GPT2LMHeadModel"
    parts = COMMON | {
        "norm": ("layernorm",),
        "activation": ("gelu",),
        "position": ("learned",),
        "attention": ("mha",),
        "block": ("sequential",),
    }
    free = ("norm.eps", "activation.approximate")

    def own_misfits(self) -> Iterator[str]:
        if not self.dims.bias:
            yield "model.bias=false"

    def settings(self) -> dict[str, Any]:
        d = self.dims
        return {
            "n_embd": d.d_model,
            "n_layer": d.n_layers,
            "n_head": d.n_heads,
            "n_positions": d.max_len,
            "n_inner": self.made.d_ff,
            "activation_function": self.activation,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "embd_pdrop": d.dropout,
            "attn_pdrop": d.dropout,
            "resid_pdrop": d.dropout,
        }

    def modules(self) -> Iterator[Module]:
        theirs = "transformer.h.#"
        yield Module(QKV, f"{theirs}.attn.c_attn", turned, turned_back)
        yield Module(f"{LAYER}.self_attn.o_proj", f"{theirs}.attn.c_proj", turned, turned_back)
        yield Module(f"{LAYER}.mlp.up_proj", f"{theirs}.mlp.c_fc", turned, turned_back)
        yield Module(f"{LAYER}.mlp.down_proj", f"{theirs}.mlp.c_proj", turned, turned_back)
        yield Module(f"{LAYER}.input_layernorm", f"{theirs}.ln_1")
        yield Module(f"{LAYER}.post_attention_layernorm", f"{theirs}.ln_2")
        yield Module("model.embed_tokens", "transformer.wte")
        yield Module("model.position.table", "transformer.wpe")
        yield Module("model.norm", "transformer.ln_f")
        yield Module("lm_head", "lm_head")


class OPT(Family):
    """LayerNorm, a plain activation, trained vectors for positions (behind two rows that nothing reads)."""

    model_type, class_name = "opt", "OPTForCausalLM"
    parts = GPT2.parts | {"activation": PLAIN}
    free = ("norm.eps", "activation.approximate")

    def own_misfits(self) -> Iterator[str]:
        if self.knob("norm.eps") != 1e-5:
            yield f"norm.eps={self.knob('norm.eps')} (it has 1e-5)"

    def settings(self) -> dict[str, Any]:
        d = self.dims
        return {
            "hidden_size": d.d_model,
            "word_embed_proj_dim": d.d_model,
            "num_hidden_layers": d.n_layers,
            "num_attention_heads": d.n_heads,
            "ffn_dim": self.made.d_ff,
            "max_position_embeddings": d.max_len,
            "activation_function": self.activation,
            "enable_bias": d.bias,
            "do_layer_norm_before": True,
            "dropout": d.dropout,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[Module]:
        theirs = "model.decoder.layers.#"
        for name in ATTENTION:
            yield Module(f"{LAYER}.self_attn.{name}", f"{theirs}.self_attn.{name}")
        yield Module(f"{LAYER}.self_attn.o_proj", f"{theirs}.self_attn.out_proj")
        yield Module(f"{LAYER}.mlp.up_proj", f"{theirs}.fc1")
        yield Module(f"{LAYER}.mlp.down_proj", f"{theirs}.fc2")
        yield Module(f"{LAYER}.input_layernorm", f"{theirs}.self_attn_layer_norm")
        yield Module(f"{LAYER}.post_attention_layernorm", f"{theirs}.final_layer_norm")
        yield Module("model.embed_tokens", "model.decoder.embed_tokens")
        yield Module("model.position.table", "model.decoder.embed_positions", *shifted(2))
        yield Module("model.norm", "model.decoder.final_layer_norm")
        yield Module("lm_head", "lm_head")


def _fused_layers(theirs: str, attention: str, d_head: int) -> Iterator[Module]:
    """The layers of Megatron's children, BLOOM and GPT-NeoX: queries, keys and values of a head in one matrix."""
    yield Module(QKV, f"{theirs}.{attention}.query_key_value", *by_head(d_head))
    yield Module(f"{LAYER}.self_attn.o_proj", f"{theirs}.{attention}.dense")
    yield Module(f"{LAYER}.mlp.up_proj", f"{theirs}.mlp.dense_h_to_4h")
    yield Module(f"{LAYER}.mlp.down_proj", f"{theirs}.mlp.dense_4h_to_h")
    yield Module(f"{LAYER}.input_layernorm", f"{theirs}.input_layernorm")
    yield Module(f"{LAYER}.post_attention_layernorm", f"{theirs}.post_attention_layernorm")


class Bloom(Family):
    """LayerNorm, also after the embedding; tanh-GELU of four times the width; ALiBi; biases everywhere."""

    model_type, class_name, embedding_norm = "bloom", "BloomForCausalLM", True
    parts = GPT2.parts | {"position": ("alibi",)}
    free = ("norm.eps",)
    fixed: ClassVar = {"activation.approximate": "tanh"}

    def own_misfits(self) -> Iterator[str]:
        if not self.dims.bias:
            yield "model.bias=false"
        if self.made.d_ff != 4 * self.dims.d_model:
            yield f"model.d_ff={self.made.d_ff} (it has 4 d_model)"

    def settings(self) -> dict[str, Any]:
        d = self.dims
        return {
            "hidden_size": d.d_model,
            "n_layer": d.n_layers,
            "n_head": d.n_heads,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "hidden_dropout": d.dropout,
            "attention_dropout": d.dropout,
        }

    def modules(self) -> Iterator[Module]:
        yield from _fused_layers("transformer.h.#", "self_attention", self.dims.head_width)
        yield Module("model.embed_tokens", "transformer.word_embeddings")
        yield Module("model.embed_norm", "transformer.word_embeddings_layernorm")
        yield Module("model.norm", "transformer.ln_f")
        yield Module("lm_head", "lm_head")


class GPTNeoX(Family):
    """LayerNorm, RoPE on a share of each head, biases everywhere; the sublayers side by side or one after the other."""

    model_type, class_name = "gpt_neox", "GPTNeoXForCausalLM"
    parts = GPT2.parts | {"position": ("rope",), "activation": PLAIN, "block": ("sequential", "parallel")}
    free = ("norm.eps", "activation.approximate", "position.base", "position.fraction", "position.layout")
    fixed: ClassVar = {"block.own_norms": True}

    def own_misfits(self) -> Iterator[str]:
        if not self.dims.bias:
            yield "model.bias=false"

    def settings(self) -> dict[str, Any]:
        d = self.dims
        rope = {"rope_theta": self.knob("position.base"), "partial_rotary_factor": self.knob("position.fraction")}
        return {
            "hidden_size": d.d_model,
            "intermediate_size": self.made.d_ff,
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

    def modules(self) -> Iterator[Module]:
        yield from _fused_layers("gpt_neox.layers.#", "attention", self.dims.head_width)
        yield Module("model.embed_tokens", "gpt_neox.embed_in")
        yield Module("model.norm", "gpt_neox.final_layer_norm")
        yield Module("lm_head", "embed_out")
