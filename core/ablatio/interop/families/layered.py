"""Decoder-only families whose layers differ: sliding windows and positions in some of them."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ablatio.config.from_transformers import HEAD_NORM_EPS
from ablatio.config.transformers_parts import FULL, SLIDING
from ablatio.interop.families.decoders import COMMON, LAYER, Llama
from ablatio.interop.families.weights import WeightMap
from ablatio.model.part_choices import PartChoice


class Windowed(Llama):
    """Base of families with a sliding window in some layers; all windows and numbers of key-value heads are equal."""

    layered: ClassVar[Sequence[str]] = ("attention",)
    parts = Llama.parts | {"attention": ("mha", "gqa", "mqa", "sliding")}
    free: ClassVar[Sequence[str]] = (*Llama.free, "attention.window")

    def own_incompatibilities(self) -> Iterator[str]:
        """Windows or numbers of key-value heads that differ between layers."""
        yield from super().own_incompatibilities()
        if len(self.windows) > 1:
            yield f"windows of {' and '.join(map(str, self.windows))} tokens (it has one)"
        if len(self.groups) > 1:
            yield f"{' and '.join(map(str, self.groups))} key-value heads (all layers have the same number)"

    @property
    def attentions(self) -> list[PartChoice]:
        """The attention of each layer."""
        return [self.builder.choice("attention", layer) for layer in range(self.dims.n_layers)]

    @property
    def windows(self) -> list[int]:
        """The different windows."""
        # The window of attention=sliding where the config leaves it open.
        usual = max(1, self.dims.max_len // 8)
        return sorted({int(a.knobs["window"] or usual) for a in self.attentions if a.name == "sliding"})

    @property
    def groups(self) -> list[int]:
        """The different numbers of key-value heads."""
        plain = {"mha": self.dims.n_heads, "mqa": 1}
        return sorted(
            {int(plain.get(a.name) or a.knobs.get("n_kv_heads") or self.dims.n_heads) for a in self.attentions}
        )

    @property
    def layer_types(self) -> list[str]:
        """Transformers' name of the attention of each layer."""
        return [SLIDING if a.name == "sliding" else FULL for a in self.attentions]

    def settings(self) -> dict[str, Any]:
        """Return LLaMA's entries, the window, and the layers that have it."""
        heads = {"num_key_value_heads": self.groups[0], "layer_types": self.layer_types}
        return super().settings() | heads | {"sliding_window": self.windows[0] if self.windows else None}


class Mistral(Windowed):
    """Mistral: LLaMA with a sliding window in all layers; without one it is read, and exported as LLaMA."""

    model_type, class_name = "mistral", "MistralForCausalLM"
    layered: ClassVar[Sequence[str]] = ()

    def own_incompatibilities(self) -> Iterator[str]:
        """Biases, and layers without the window."""
        yield from super().own_incompatibilities()
        if self.dims.bias:
            yield "model.bias=true"
        if FULL in self.layer_types:
            yield f"attention={self.config['attention']['name']} (it supports sliding)"

    def settings(self) -> dict[str, Any]:
        """Return the entries of `MistralConfig`."""
        return {k: v for k, v in super().settings().items() if k not in ("layer_types", "attention_bias", "mlp_bias")}


class Qwen3(Windowed):
    """Qwen3: LLaMA with an RMSNorm on the queries and keys of each head, and a sliding window in some layers."""

    model_type, class_name = "qwen3", "Qwen3ForCausalLM"
    fixed: ClassVar = {"attention.qk_norm": "rmsnorm"}

    def own_incompatibilities(self) -> Iterator[str]:
        """Biases, and an epsilon that the norms of queries and keys do not have."""
        yield from super().own_incompatibilities()
        if self.dims.bias:
            yield "model.bias=true"
        if self.knob("norm.eps") != HEAD_NORM_EPS:
            yield f"norm.eps={self.knob('norm.eps')} (it supports {HEAD_NORM_EPS}, that of attention.qk_norm=rmsnorm)"

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `Qwen3ForCausalLM`: LLaMA's and the norms of queries and keys."""
        yield from super().modules()
        for name in ("q_norm", "k_norm"):
            yield WeightMap(f"{LAYER}.self_attn.{name}", f"{LAYER}.self_attn.{name}")

    def settings(self) -> dict[str, Any]:
        """Return the entries of `Qwen3Config`; those of windows only if there are any."""
        found = super().settings()
        if self.windows:
            return found | {"use_sliding_window": True}
        return {k: v for k, v in found.items() if k not in ("layer_types", "sliding_window")}


class SmolLM3(Llama):
    """SmolLM3: LLaMA without rotation in some layers."""

    model_type, class_name = "smollm3", "SmolLM3ForCausalLM"
    layered: ClassVar[Sequence[str]] = ("position",)
    parts = Llama.parts | {"position": ("rope", "none")}

    def own_incompatibilities(self) -> Iterator[str]:
        """Rotations with different bases, heads that are not d_model / n_heads wide, and no rotation anywhere."""
        yield from super().own_incompatibilities()
        if self.dims.head_width * self.dims.n_heads != self.dims.d_model:
            yield f"model.d_head={self.dims.head_width} (it supports d_model / n_heads)"
        if len({(p.knobs["base"], p.knobs["layout"]) for p in self.positions if p.name == "rope"}) != 1:
            yield "layers.position (it has one rotation, in some layers)"

    @property
    def positions(self) -> list[PartChoice]:
        """The position of each layer."""
        return [self.builder.choice("position", layer) for layer in range(self.dims.n_layers)]

    def settings(self) -> dict[str, Any]:
        """Return LLaMA's entries, and the layers that are rotated."""
        rotated = [p for p in self.positions if p.name == "rope"]
        theta = {"rope_type": "default", "rope_theta": rotated[0].knobs["base"]}
        plain = {k: v for k, v in super().settings().items() if k != "head_dim"}
        return plain | {"rope_parameters": theta, "no_rope_layers": [int(p.name == "rope") for p in self.positions]}


class Gemma3(Windowed):
    """Gemma 3: four norms of the form (1 + w) per layer, local layers with a window and a rotation of their own."""

    model_type, class_name = "gemma3_text", "Gemma3ForCausalLM"
    layered: ClassVar[Sequence[str]] = ("attention", "position")
    parts = COMMON | Windowed.parts | {"placement": ("sandwich",), "norm": ("gemma_rmsnorm",), "activation": ("geglu",)}
    fixed: ClassVar = {"attention.qk_norm": "gemma_rmsnorm"}

    def own_incompatibilities(self) -> Iterator[str]:
        """Another rotation within the local or within the global layers, biases, an epsilon that head norms lack."""
        yield from super().own_incompatibilities()
        if self.dims.bias:
            yield "model.bias=true"
        if self.knob("norm.eps") != HEAD_NORM_EPS:
            yield f"norm.eps={self.knob('norm.eps')} (it supports 1e-6, that of attention.qk_norm=gemma_rmsnorm)"
        for kind in (FULL, SLIDING):
            if len(bases := self._bases(kind)) > 1:
                yield f"rotations with the bases {bases} in layers with {kind} (it has one)"
        layouts = {self.builder.choice("position", i).knobs.get("layout") for i in range(self.dims.n_layers)}
        if layouts != {self.knob("position.layout")}:
            yield "layers.position with another layout (it has one)"

    def _bases(self, kind: str) -> list[float]:
        """The different bases of the rotation in the layers of this type."""
        layers = [i for i, found in enumerate(self.layer_types) if found == kind]
        return sorted({float(self.builder.choice("position", i).knobs.get("base", 0)) for i in layers})

    def attention_scale(self) -> float:
        """Return query_pre_attn_scalar^-0.5, which is free."""
        return self.builder.attention_scale

    def embedding_scale(self) -> float:
        """Return sqrt(d_model)."""
        return float(self.dims.d_model**0.5)

    def settings(self) -> dict[str, Any]:
        """Return the entries of `Gemma3TextConfig`."""
        found = {k: v for k, v in super().settings().items() if k not in ("mlp_bias", "hidden_act")}
        base = {kind: (self._bases(kind) or [self.knob("position.base")])[0] for kind in (FULL, SLIDING)}
        rotations = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in base.items()}
        scalar = self.builder.attention_scale**-2
        return found | {
            "rope_parameters": rotations,
            "hidden_activation": self.activation,
            "sliding_window": self.windows[0] if self.windows else self.dims.max_len,
            # Two powers give the whole number back only up to rounding.
            "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        }

    def modules(self) -> Iterator[WeightMap]:
        """Yield the modules of `Gemma3ForCausalLM`: LLaMA's, norms after the sublayers, norms of queries and keys."""
        norms = ("input_layernorm", "post_attention_layernorm")
        yield from (m for m in super().modules() if not m.names[0].endswith(norms))
        yield WeightMap(f"{LAYER}.input_layernorm.0", f"{LAYER}.input_layernorm")
        yield WeightMap(f"{LAYER}.input_layernorm.1", f"{LAYER}.post_attention_layernorm")
        yield WeightMap(f"{LAYER}.post_attention_layernorm.0", f"{LAYER}.pre_feedforward_layernorm")
        yield WeightMap(f"{LAYER}.post_attention_layernorm.1", f"{LAYER}.post_feedforward_layernorm")
        for name in ("q_norm", "k_norm"):
            yield WeightMap(f"{LAYER}.self_attn.{name}", f"{LAYER}.self_attn.{name}")
