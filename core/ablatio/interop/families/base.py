"""Base of transformers families: which combinations of parts and knobs a transformers model class computes exactly."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ablatio.config.schema import Model, section_knobs
from ablatio.interop.families.weights import (
    WeightMap,
    permute_rope_pairs,
    rescaled_weights,
    to_native_weights,
    to_own_weights,
)
from ablatio.model.builder import ModelBuilder
from ablatio.model.parameter_roles import TRAINING_ONLY
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES

SIZES = (
    "d_model", "n_layers", "n_heads", "d_head", "d_ff", "vocab_size", "max_len", "tied", "bias", "dropout",
    "encoder_layers", "embedding_norm", "embedding_scale", "final_norm", "attention_scale", "logit_scale",
    "start", "path",
)  # fmt: skip
# (activation, approximate) -> transformers' name; for a gated activation, the name of the function on its gate.
ACTIVATIONS = {
    ("relu", None): "relu", ("gelu", "none"): "gelu", ("gelu", "tanh"): "gelu_pytorch_tanh", ("silu", None): "silu",
    ("relu2", None): "relu2", ("quick_gelu", None): "quick_gelu", ("mish", None): "mish",
    ("reglu", None): "relu", ("geglu", "none"): "gelu", ("geglu", "tanh"): "gelu_pytorch_tanh",
    ("swiglu", None): "silu",
}  # fmt: skip


class Family:
    """A transformers model class and the combinations of parts that it computes exactly.

    parts       the options of each kind that the class supports
    free        knobs that the class has, too; all other knobs of a chosen part must have their defaults
    fixed       knobs that must have this value instead of their default
    plain_head  True if the width of a head must be d_model / n_heads
    layered     kinds whose parts may differ between layers
    Subclasses check biases, tying and norms.
    """

    model_type: ClassVar[str]
    class_name: ClassVar[str]
    parts: ClassVar[Mapping[str, Sequence[str]]]
    free: ClassVar[Sequence[str]] = ()
    fixed: ClassVar[Mapping[str, Any]] = {}
    plain_head: ClassVar[bool] = True
    layered: ClassVar[Sequence[str]] = ()
    embedding_norm: ClassVar[bool] = False

    def __init__(self, config: Mapping[str, Any], vocab_size: int, eos: int = 0) -> None:
        self.config, self.builder, self.eos = config, ModelBuilder(config, vocab_size, eos), eos
        self.dims = self.builder.dims

    def incompatibilities(self) -> list[str]:
        """Return the settings of the config that the transformers class does not support; empty if it fits."""
        return [*self._parts(), *self._sizes(), *self.own_incompatibilities()]

    def own_incompatibilities(self) -> Iterator[str]:
        """Yield further unsupported settings; for subclasses."""
        yield from ()

    def settings(self) -> dict[str, Any]:
        """Return the entries for sizes and parts in the class's config.json."""
        raise NotImplementedError

    def modules(self) -> Iterator[WeightMap]:
        """Yield the correspondence between modules of an ablatio model and of the transformers class."""
        raise NotImplementedError

    def attention_scale(self) -> float:
        """Return the class's factor on q k^T."""
        return float(self.dims.head_width**-0.5)

    def logit_scale(self) -> float:
        """Return the class's factor on the logits."""
        return 1.0

    def embedding_scale(self) -> float:
        """Return the class's factor on the embeddings."""
        return 1.0

    def to_native(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert weights to the transformers class, without a tied head and what only training uses."""
        tensors = {n: t for n, t in tensors.items() if n not in self._duplicates() and not TRAINING_ONLY.search(n)}
        tensors = rescaled_weights(tensors, *self._factors(), self._queries)
        if self._interleaved:
            tensors = permute_rope_pairs(tensors, self.dims.head_width, self._rotated_width)
        return to_native_weights(tensors, self._layer_maps())

    def from_native(self, tensors: Mapping[str, Tensor], *, rescaled: bool = True) -> dict[str, Tensor]:
        """Convert weights of the transformers class to ablatio's names and layout.

        rescaled: where its factors on logits and scores differ from the config's, move them into weights.
        """
        found = to_own_weights(tensors, self._layer_maps())
        if self._interleaved:
            found = permute_rope_pairs(found, self.dims.head_width, self._rotated_width, back=True)
        if rescaled:
            logits, attention = self._factors()
            found = rescaled_weights(found, 1 / logits, 1 / attention, self._queries)
        tied = {
            "lm_head.weight": "model.embed_tokens.weight",
            "encoder.embed_tokens.weight": "model.embed_tokens.weight",
        }
        return found | {n: found[tied[n]] for n in self._duplicates() if n in tied}

    def config_json(self) -> dict[str, Any]:
        """Return the complete config.json of the transformers class."""
        # No pad token: some classes give its row no gradient, and the only candidate, eos, is an ordinary token.
        ids = {"bos_token_id": self.eos, "eos_token_id": self.eos, "pad_token_id": None}
        sizes = {"vocab_size": self.dims.vocab_size, "tie_word_embeddings": self.dims.tied}
        return {"architectures": [self.class_name], "model_type": self.model_type, **sizes, **ids, **self.settings()}

    @property
    def activation(self) -> str:
        """Transformers' name of the activation."""
        knobs = self.config["activation"]
        return ACTIVATIONS[knobs["name"], knobs.get("approximate")]

    def knob(self, name: str, default: Any = None) -> Any:
        """Return the value of a knob, 'kind.knob', in the config."""
        kind, _, knob = name.partition(".")
        return self.config[kind].get(knob, default)

    def _parts(self) -> Iterator[str]:
        """Unsupported parts and knobs."""
        varied = per_layer.varied(self.config)
        yield from (f"layers.{kind} (it has one {kind} for all layers)" for kind in varied if kind not in self.layered)
        for registry in REGISTRIES.values():
            kind: str = registry.kind
            chosen: Mapping[str, Any] | None = self.config.get(kind)
            if chosen is None or not (registry.scope == "model" or registry.attaches):
                continue
            if kind not in self.parts:  # a plugin's kind, which no native class has
                yield from () if chosen["name"] == registry.default else (f"{kind}={chosen['name']} (it has none)",)
                continue
            for node in per_layer.in_use(self.config, registry) if kind in varied else [chosen]:
                yield from self._part(kind, node)

    def _part(self, kind: str, chosen: Mapping[str, Any]) -> Iterator[str]:
        """The unsupported part or knobs of one choice."""
        if chosen["name"] not in self.parts[kind]:
            yield f"{kind}={chosen['name']} (it supports {' or '.join(self.parts[kind])})"
            return
        for knob in REGISTRIES[kind][chosen["name"]].knobs:
            where = f"{kind}.{knob.name}"
            wanted = self.fixed.get(where, knob.cast(knob.default))
            if where not in self.free and knob.cast(chosen.get(knob.name)) != wanted:
                yield f"{where}={chosen.get(knob.name)} (it supports {wanted})"

    def _sizes(self) -> Iterator[str]:
        """Unsupported settings of the model section."""
        d = self.dims
        if self.plain_head and d.head_width * d.n_heads != d.d_model:
            yield f"model.d_head={d.head_width} (it supports d_model / n_heads)"
        if d.embedding_scale != self.embedding_scale():
            yield f"model.embedding_scale={d.embedding_scale}"
        if bool(d.embedding_norm) != self.embedding_norm:
            yield f"model.embedding_norm={bool(d.embedding_norm)}"
        if d.final_norm is False:
            yield "model.final_norm=false"
        for knob in section_knobs(Model):  # a setting that is not handled here must have its default
            value = self.config["model"].get(knob.name, knob.default)
            if knob.name not in SIZES and value != knob.default:
                yield f"model.{knob.name}={value}"

    def _factors(self) -> tuple[float, float]:
        """Factors on the logits and on q k^T, each divided by that of the transformers class."""
        pairs = ((self.builder.logit_scale, self.logit_scale()), (self.builder.attention_scale, self.attention_scale()))
        # Exactly 1 for equal scales, so that rounding does not change the weights.
        logits, attention = (1.0 if math.isclose(a, b, rel_tol=1e-12) else a / b for a, b in pairs)
        return logits, attention

    @property
    def _queries(self) -> str:
        """The last module with weights that a query passes."""
        return "q_norm" if "attention.qk_norm" in self.fixed else "q_proj"

    def _duplicates(self) -> set[str]:
        """Names of weights that are tied to the token embedding and stored once."""
        shared = {"encoder.embed_tokens.weight"} if len(self.builder.stacks) == 2 else set()
        return shared | ({"lm_head.weight"} if self.dims.tied else set())

    def _layer_maps(self) -> Iterator[WeightMap]:
        """The correspondence of `modules`, repeated for each layer."""
        for module in self.modules():
            side = "encoder" if module.names[0].startswith("encoder.") else "decoder"
            yield from module.for_layers(self.builder.depth(side))  # type: ignore[arg-type]

    @property
    def _rotated_width(self) -> int:
        """Number of components of a head that RoPE rotates."""
        return int(self.dims.head_width * self.knob("position.fraction", 1.0))

    @property
    def _interleaved(self) -> bool:
        """True if RoPE rotates the pairs (2i, 2i+1), whereas transformers rotates (i, i + width/2)."""
        return bool(self.config["position"]["name"] == "rope" and self.knob("position.layout") == "interleaved")
