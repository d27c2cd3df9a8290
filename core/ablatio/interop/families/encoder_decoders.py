"""Encoder-decoder families: T5 1.0 and 1.1."""

from collections.abc import Iterator
from typing import Any, ClassVar

from ablatio.interop.families.base import Family
from ablatio.interop.families.weights import ATTENTION, WeightMap


class T5(Family):
    """T5: RMSNorm, relative position biases (one table per stack), no biases in layers, no factor on q k^T.

    Version 1.0 ties embedding and head and multiplies the logits by d_model^-1/2; version 1.1 has a separate head.
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
    free = (
        "norm.eps", "activation.approximate", "position.buckets", "position.max_distance",
        "architecture.decoder_start", "architecture.source_end",
    )  # fmt: skip

    def own_incompatibilities(self) -> Iterator[str]:
        """Biases."""
        if self.dims.bias:
            yield "model.bias=true"

    def attention_scale(self) -> float:
        """Return 1: T5 does not scale q k^T."""
        return 1.0

    def logit_scale(self) -> float:
        """Return d_model^-1/2 if embedding and head are tied, else 1."""
        return float(self.dims.d_model**-0.5) if self.dims.tied else 1.0

    def settings(self) -> dict[str, Any]:
        """Return the entries of `T5Config`."""
        d, gated = self.dims, "gated-" if self.builder.gated else ""
        # transformers reads `gated-gelu` as tanh-GELU; `gelu_python` is the exact GELU.
        name = "gelu_python" if self.activation == "gelu" and gated else self.activation
        return {
            "d_model": d.d_model,
            "d_kv": d.head_width,
            "d_ff": self.builder.d_ff,
            "num_layers": self.builder.depth("encoder"),
            "num_decoder_layers": d.n_layers,
            "num_heads": d.n_heads,
            "relative_attention_num_buckets": self.knob("position.buckets"),
            "relative_attention_max_distance": self.knob("position.max_distance"),
            "dropout_rate": d.dropout,
            "layer_norm_epsilon": self.knob("norm.eps"),
            "feed_forward_proj": f"{gated}{name}",
            "is_encoder_decoder": True,
            "decoder_start_token_id": self.decoder_start,
            "pad_token_id": self.decoder_start,
        }

    @property
    def decoder_start(self) -> int:
        """Id of the decoder's first input."""
        given = self.knob("architecture.decoder_start")
        return self.eos if given is None else int(given)

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `T5ForConditionalGeneration`."""
        yield WeightMap("model.embed_tokens", "shared")
        yield from self._stack("encoder", "encoder", last=1)
        yield from self._stack("model", "decoder", last=2)
        cross = "decoder.block.#.layer.1"
        for ours, native in zip((*ATTENTION, "o_proj"), "qkvo", strict=True):
            yield WeightMap(f"model.layers.#.cross_attn.{ours}", f"{cross}.EncDecAttention.{native}")
        yield WeightMap("model.layers.#.cross_layernorm", f"{cross}.layer_norm")
        yield WeightMap("lm_head", "lm_head")

    def _stack(self, ours: str, native: str, last: int) -> Iterator[WeightMap]:
        """Correspondence of one stack; last: number of the MLP sublayer, which follows self- and cross-attention."""
        block = f"{native}.block.#.layer"
        for name, short in zip((*ATTENTION, "o_proj"), "qkvo", strict=True):
            yield WeightMap(f"{ours}.layers.#.self_attn.{name}", f"{block}.0.SelfAttention.{short}")
        yield WeightMap(f"{ours}.layers.#.input_layernorm", f"{block}.0.layer_norm")
        inner = {"gate_proj": "wi_0", "up_proj": "wi_1"} if self.builder.gated else {"up_proj": "wi"}
        for name, short in {**inner, "down_proj": "wo"}.items():
            yield WeightMap(f"{ours}.layers.#.mlp.{name}", f"{block}.{last}.DenseReluDense.{short}")
        yield WeightMap(f"{ours}.layers.#.post_attention_layernorm", f"{block}.{last}.layer_norm")
        bias = "relative_attention_bias"
        yield WeightMap(f"{ours}.position.{bias}", f"{native}.block.0.layer.0.SelfAttention.{bias}")
        yield WeightMap(f"{ours}.norm", f"{native}.final_layer_norm")
