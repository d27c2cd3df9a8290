"""What it takes to be one of transformers' own models: which parts fit, and with which knobs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ablatio.config.schema import Model, section_knobs
from ablatio.interop.families.weights import Module, scaled, to_ours, to_theirs, turned_by_halves
from ablatio.model.build import ModelBuilder
from ablatio.model.parameter_roles import SIBLING
from ablatio.registry.registry import REGISTRIES

SIZES = (
    "d_model", "n_layers", "n_heads", "d_head", "d_ff", "vocab_size", "max_len", "tied", "bias", "dropout",
    "encoder_layers", "embedding_norm", "embedding_scale", "final_norm", "attention_scale", "logit_scale",
    "start", "path",
)  # fmt: skip
# Our activation -> transformers' name of it; of a gated one, of the function on its gate.
ACTIVATIONS = {
    ("relu", None): "relu", ("gelu", "none"): "gelu", ("gelu", "tanh"): "gelu_pytorch_tanh", ("silu", None): "silu",
    ("relu2", None): "relu2", ("quick_gelu", None): "quick_gelu", ("mish", None): "mish",
    ("reglu", None): "relu", ("geglu", "none"): "gelu", ("geglu", "tanh"): "gelu_pytorch_tanh",
    ("swiglu", None): "silu",
}  # fmt: skip


class Family:
    """A class of transformers' and the combinations of ours that it computes exactly.

    parts      the options of each kind that fit
    free       knobs that it has too; all others of a chosen part must have their defaults, or the value in `fixed`
    plain_head whether a head has the width d_model / n_heads
    Biases, tying and norms are the subclass's to check.
    """

    model_type: ClassVar[str]
    class_name: ClassVar[str]
    parts: ClassVar[Mapping[str, Sequence[str]]]
    free: ClassVar[Sequence[str]] = ()
    fixed: ClassVar[Mapping[str, Any]] = {}
    plain_head: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = False

    def __init__(self, config: Mapping[str, Any], vocab_size: int, eos: int = 0) -> None:
        self.config, self.made, self.eos = config, ModelBuilder(config, vocab_size, eos), eos
        self.dims = self.made.dims

    def misfits(self) -> list[str]:
        """What the class of theirs does not have, as settings of ours; empty when it fits."""
        return [*self._parts(), *self._sizes(), *self.own_misfits()]

    def own_misfits(self) -> Iterator[str]:
        """Further settings that do not fit."""
        yield from ()

    def settings(self) -> dict[str, Any]:
        """What their config.json says of the sizes and parts."""
        raise NotImplementedError

    def modules(self) -> Iterator[Module]:
        """Where each of our modules stands in theirs."""
        raise NotImplementedError

    def attention_scale(self) -> float:
        """Their factor on q k^T."""
        return float(self.dims.head_width**-0.5)

    def logit_scale(self) -> float:
        return 1.0

    def to_native(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our weights as theirs, without those of a tied head and of what only training asks."""
        tensors = {n: t for n, t in tensors.items() if n not in self._doubles() and not SIBLING.search(n)}
        tensors = scaled(tensors, *self._factors())
        if self._interleaved:
            tensors = turned_by_halves(tensors, self.dims.head_width, self._turned)
        return to_theirs(tensors, self._numbered())

    def from_native(self, tensors: Mapping[str, Tensor], *, rescaled: bool = True) -> dict[str, Tensor]:
        """Their weights as ours.  rescaled: their factors on logits and scores go into weights, where ours differ."""
        found = to_ours(tensors, self._numbered())
        if self._interleaved:
            found = turned_by_halves(found, self.dims.head_width, self._turned, back=True)
        if rescaled:
            logits, attention = self._factors()
            found = scaled(found, 1 / logits, 1 / attention)
        tied = {
            "lm_head.weight": "model.embed_tokens.weight",
            "encoder.embed_tokens.weight": "model.embed_tokens.weight",
        }
        return found | {n: found[tied[n]] for n in self._doubles() if n in tied}

    def config_json(self) -> dict[str, Any]:
        """Their config.json, whole."""
        # No pad: some classes would keep the gradient from its row, and eos is a token like others.
        ids = {"bos_token_id": self.eos, "eos_token_id": self.eos, "pad_token_id": None}
        sizes = {"vocab_size": self.dims.vocab_size, "tie_word_embeddings": self.dims.tied}
        return {"architectures": [self.class_name], "model_type": self.model_type, **sizes, **ids, **self.settings()}

    @property
    def activation(self) -> str:
        """Their name of the activation."""
        knobs = self.config["activation"]
        return ACTIVATIONS[knobs["name"], knobs.get("approximate")]

    def knob(self, name: str, default: Any = None) -> Any:
        kind, _, knob = name.partition(".")
        return self.config[kind].get(knob, default)

    def _parts(self) -> Iterator[str]:
        for registry in REGISTRIES.values():
            kind: str = registry.kind
            chosen: Mapping[str, Any] | None = self.config.get(kind)
            if chosen is None or not (registry.scope == "model" or registry.attaches):
                continue
            if kind not in self.parts:  # a kind that a plugin has added, and no class of theirs has
                yield from () if chosen["name"] == registry.default else (f"{kind}={chosen['name']} (it has none)",)
                continue
            if chosen["name"] not in self.parts[kind]:
                yield f"{kind}={chosen['name']} (it has {' or '.join(self.parts[kind])})"
                continue
            for knob in REGISTRIES[kind][chosen["name"]].knobs:
                where = f"{kind}.{knob.name}"
                wanted = self.fixed.get(where, knob.cast(knob.default))
                if where not in self.free and knob.cast(chosen.get(knob.name)) != wanted:
                    yield f"{where}={chosen.get(knob.name)} (it has {wanted})"

    def _sizes(self) -> Iterator[str]:
        d = self.dims
        if self.plain_head and d.head_width * d.n_heads != d.d_model:
            yield f"model.d_head={d.head_width} (it has d_model / n_heads)"
        if d.embedding_scale != 1.0:
            yield f"model.embedding_scale={d.embedding_scale}"
        if bool(d.embedding_norm) != self.embedding_norm:
            yield f"model.embedding_norm={bool(d.embedding_norm)}"
        if d.final_norm is False:
            yield "model.final_norm=false"
        for knob in section_knobs(Model):  # a setting that this file does not know must not be set
            value = self.config["model"].get(knob.name, knob.default)
            if knob.name not in SIZES and value != knob.default:
                yield f"model.{knob.name}={value}"

    def _factors(self) -> tuple[float, float]:
        """Ours over theirs: of the logits and of q k^T."""
        pairs = ((self.made.logit_scale, self.logit_scale()), (self.made.attention_scale, self.attention_scale()))
        logits, attention = (1.0 if math.isclose(a, b, rel_tol=1e-12) else a / b for a, b in pairs)
        return logits, attention

    def _doubles(self) -> set[str]:
        shared = {"encoder.embed_tokens.weight"} if len(self.made.stacks) == 2 else set()
        return shared | ({"lm_head.weight"} if self.dims.tied else set())

    def _numbered(self) -> Iterator[Module]:
        for module in self.modules():
            side = "encoder" if module.names[0].startswith("encoder.") else "decoder"
            yield from module.numbered(self.made.depth(side))  # type: ignore[arg-type]

    @property
    def _turned(self) -> int:
        """How many numbers of a head rope turns."""
        return int(self.dims.head_width * self.knob("position.fraction", 1.0))

    @property
    def _interleaved(self) -> bool:
        return bool(self.config["position"]["name"] == "rope" and self.knob("position.layout") == "interleaved")
