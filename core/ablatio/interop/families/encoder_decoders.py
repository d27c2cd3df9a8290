"""Encoder-decoders: T5, 1.0 and 1.1."""

from collections.abc import Iterator
from typing import Any, ClassVar

from ablatio.interop.families.base import Family
from ablatio.interop.families.weights import ATTENTION, Module


class T5(Family):
    """RMSNorm, relative position biases (a table for each stack), no biases, no factor on q k^T.

    1.0 has one matrix for embedding and head, and logits times d_model^-1/2; 1.1 has a head of its own.
    """

    model_type, class_name, plain_head = "t5", "T5ForConditionalGeneration", False
    parts: ClassVar = {
        "norm": ("rmsnorm",),
        "placement": ("pre",),
        "activation": ("relu", "gelu", "silu", "swiglu", "geglu", "reglu"),
        "mlp": ("dense",),
        "position": ("t5",),
        "attention": ("mha",),
        "block": ("sequential",),
        "architecture": ("encoder_decoder",),
    }
    free = ("norm.eps", "activation.approximate", "position.buckets", "position.max_distance")

    def own_misfits(self) -> Iterator[str]:
        if self.dims.bias:
            yield "model.bias=true"

    def attention_scale(self) -> float:
        return 1.0

    def logit_scale(self) -> float:
        return float(self.dims.d_model**-0.5) if self.dims.tied else 1.0

    def settings(self) -> dict[str, Any]:
        d, gated = self.dims, "gated-" if self.made.gated else ""
        # Of `gated-gelu` transformers makes the tanh form, whatever it is called.
        name = "gelu_python" if self.activation == "gelu" and gated else self.activation
        return {
            "d_model": d.d_model,
            "d_kv": d.head_width,
            "d_ff": self.made.d_ff,
            "num_layers": self.made.depth("encoder"),
            "num_decoder_layers": d.n_layers,
            "num_heads": d.n_heads,
            "relative_attention_num_buckets": self.knob("position.buckets"),
            "relative_attention_max_distance": self.knob("position.max_distance"),
            "dropout_rate": d.dropout,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "feed_forward_proj": f"{gated}{name}",
            "is_encoder_decoder": True,
            "decoder_start_token_id": self.eos,
            "pad_token_id": self.eos,
        }

    def modules(self) -> Iterator[Module]:
        yield Module("model.embed_tokens", "shared")
        yield from self._stack("encoder", "encoder", last=1)
        yield from self._stack("model", "decoder", last=2)
        cross = "decoder.block.#.layer.1"
        for ours, theirs in zip((*ATTENTION, "o_proj"), "qkvo", strict=True):
            yield Module(f"model.layers.#.cross_attn.{ours}", f"{cross}.EncDecAttention.{theirs}")
        yield Module("model.layers.#.cross_layernorm", f"{cross}.layer_norm")
        yield Module("lm_head", "lm_head")

    def _stack(self, ours: str, theirs: str, last: int) -> Iterator[Module]:
        """last: the number of the feed-forward sublayer; attention, also to an encoder, comes before it."""
        block = f"{theirs}.block.#.layer"
        for name, short in zip((*ATTENTION, "o_proj"), "qkvo", strict=True):
            yield Module(f"{ours}.layers.#.self_attn.{name}", f"{block}.0.SelfAttention.{short}")
        yield Module(f"{ours}.layers.#.input_layernorm", f"{block}.0.layer_norm")
        inner = {"gate_proj": "wi_0", "up_proj": "wi_1"} if self.made.gated else {"up_proj": "wi"}
        for name, short in {**inner, "down_proj": "wo"}.items():
            yield Module(f"{ours}.layers.#.mlp.{name}", f"{block}.{last}.DenseReluDense.{short}")
        yield Module(f"{ours}.layers.#.post_attention_layernorm", f"{block}.{last}.layer_norm")
        bias = "relative_attention_bias"
        yield Module(f"{ours}.position.{bias}", f"{theirs}.block.0.layer.0.SelfAttention.{bias}")
        yield Module(f"{ours}.norm", f"{theirs}.final_layer_norm")
