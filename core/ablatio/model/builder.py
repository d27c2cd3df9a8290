"""Builder of models: each part receives the arguments of its constructor, and a seed of its own."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from torch import nn

from ablatio.errors import UserError
from ablatio.model.attached import PLACES, chosen_at, put_before, put_on
from ablatio.model.dims import ModelDims, Side, matched_width, rows_for
from ablatio.model.new_weights import initialize, share_weights
from ablatio.model.parameter_roles import named_seed, seeded
from ablatio.model.part_choices import PartChoice as PartChoice
from ablatio.model.part_choices import PartChoices, objective_of
from ablatio.registry import kinds, shared_layers
from ablatio.registry.registry import Place, Registry
from ablatio.registry.value_schedules import settled

T = TypeVar("T")
ORIGIN = ("start", "path")  # settings of the model's origin, which do not affect its structure
Sublayer = Literal["attention", "cross", "mlp", "both"]


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Constructors of a block's parts; a block must call them in the order in which it applies the parts.

    layer, n_layers   number of the layer in its stack, from 0, and number of layers
    norms, placement  take the sublayer that they are for: attention | cross | mlp | both
    attention, mlp    None in a layer without it (`attention=none`, `mlp=none`)
    cross             cross-attention to the encoder's states, in a decoder that has an encoder; else None
    """

    layer: int
    n_layers: int
    attention: Callable[[], nn.Module] | None
    cross: Callable[[], nn.Module] | None
    mlp: Callable[[], nn.Module] | None
    norms: Callable[[Sublayer], nn.Module]
    placement: Callable[[Sublayer], Any]


class ModelBuilder:
    """Builds a model from a resolved config: a part per kind, the sizes, and the seed of the initial weights.

    vocab_size is the number of the tokenizer's ids. In the embedding they are followed by the ids that the objective
    adds (sentinels, masks), then by unused rows up to `model.vocab_size`.
    """

    def __init__(self, config: Mapping[str, Any], vocab_size: int, eos: int = 0, seed: int = 0) -> None:
        config = settled(config)
        self.config, self.eos, self.seed, self._choices = config, eos, seed, PartChoices(config)
        objective = objective_of(config, vocab_size, eos)
        ids, self.ahead = vocab_size + int(getattr(objective, "extra_tokens", 0)), int(getattr(objective, "ahead", 1))
        self.further_heads = int(getattr(objective, "further_heads", 0))
        sizes = {k: v for k, v in config["model"].items() if k not in ORIGIN}
        self.dims = ModelDims(**{**sizes, "vocab_size": rows_for(ids, sizes.get("vocab_size"))})
        init = self.choice("init")
        self.init = kinds.inits.build(init.name, init.knobs)
        self.stacks: tuple[str, ...] = tuple(self._facts(kinds.architectures)["stacks"])

    def choice(self, kind: str, layer: int | None = None, side: Side = "decoder") -> PartChoice:
        """Return the part that the config chooses for a kind: in this layer of a stack, or outside the layers."""
        return self._choices.of_run(kind) if layer is None else self._choices.at(kind, layer, self.depth(side))

    def varies(self, kind: str) -> bool:
        """Return True if the config chooses the parts of a kind per layer."""
        return kind in self._choices.varied

    def _facts(self, registry: Registry[Any], layer: int | None = None, side: Side = "decoder") -> Mapping[str, Any]:
        return registry[self.choice(registry.kind, layer, side).name].facts

    def _facts_in_use(self, registry: Registry[Any]) -> list[Mapping[str, Any]]:
        """Facts of the different parts of a kind in any layer of the model."""
        return [registry[choice.name].facts for choice in self._choices.in_use(registry)]

    def model(self) -> Any:
        """Build and initialize the model; the weights of a part depend only on its name and the seed."""
        choice = self.choice("architecture")
        with seeded(self.seed):  # restores the global generator, so that dropout does not depend on the model's size
            model = kinds.architectures.build(choice.name, choice.knobs, builder=self)
        initialize(model, self.init, self.seed)
        if self.config.get("checkpointing"):
            again = self.choice("checkpointing")
            kinds.checkpointings.build(again.name, again.knobs).apply(model)
        return model

    def for_length(self, max_len: int) -> "ModelBuilder":
        """Return a builder of stacks that read texts of up to `max_len` tokens, whatever model.max_len is."""
        other = copy.copy(self)
        other.dims = replace(self.dims, max_len=max_len)
        return other

    def depth(self, side: Side) -> int:
        """Return the number of layers of a stack; an encoder with a decoder may have its own number."""
        two = len(self.stacks) == 2
        return self.dims.encoder_layers or self.dims.n_layers if side == "encoder" and two else self.dims.n_layers

    def root(self, side: Side) -> str:
        """Return the attribute path of a stack in the model."""
        return "encoder" if side == "encoder" and len(self.stacks) == 2 else "model"

    @property
    def shared_prefix(self) -> bool:
        """True if a cached prefix plus its continuation gives the output of one full pass, in training too."""
        attached = [r for place in PLACES for r in chosen_at(place, self.config)]
        parts: list[Registry[Any]] = [kinds.mlps, kinds.placements, *attached]
        whole = (facts.get("batch_dependent", False) for part in parts for facts in self._facts_in_use(part))
        attentions = self._facts_in_use(kinds.attentions)
        return all(facts["caches"] and facts["takes_segments"] for facts in attentions) and not any(whole)

    @property
    def logit_scale(self) -> float:
        """Factor on the hidden states before the head: the config's, else the init's, else 1."""
        given, asked = self.dims.logit_scale, getattr(self.init, "logit_scale", None)
        return given if given is not None else float(asked(self.dims.d_model)) if asked else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor on q k^T in attention outside a mixed stack; see `scale_at`."""
        return self.scale_at(None)

    def scale_at(self, layer: int | None, side: Side = "decoder") -> float:
        """Factor on q k^T: the config's, else the init's, else d_head^-1/2, as where the init cannot fold it."""
        given, asked, width = (
            self.dims.attention_scale,
            getattr(self.init, "attention_scale", None),
            self.dims.head_width,
        )
        if given is not None:
            return given
        folded = getattr(self.init, "fold", False) and not self._queries_scale(layer, side)
        return float(asked(width)) if asked and not folded else width**-0.5

    def _queries_scale(self, layer: int | None, side: Side) -> bool:
        """True if a factor on the queries of the attention is a factor on its logits: nothing normalizes them."""
        normed = self.choice("attention", layer, side).knobs.get("qk_norm", "none") != "none"
        return bool(self._facts(kinds.attentions, layer, side)["queries_scale"]) and not normed

    def norm(self, path: str, width: int | None = None, layer: int | None = None, side: Side = "decoder") -> nn.Module:
        """Build a norm of this width (default d_model) for the place `path`, in a layer or outside the layers."""
        return self._make(kinds.norms, path, layer, side, d_model=width or self.dims.d_model)

    def norms(self, path: str, around: Sublayer, layer: int, side: Side = "decoder") -> nn.Module:
        """Build the norms of one sublayer, as many as the placement uses: one module, or a list."""
        count = n_norms(self._facts(kinds.placements, layer, side), around, layer)
        if count == 1:
            return self.norm(path, None, layer, side)
        return nn.ModuleList([self.norm(f"{path}.{i}", None, layer, side) for i in range(count)])

    def final_norm(self, side: Side) -> nn.Module | None:
        """Build the norm after the last layer of a stack, or None."""
        return self._wanted_norm(f"{self.root(side)}.norm", self.dims.final_norm, "final_norm")

    def embedding_norm(self, side: Side) -> nn.Module | None:
        """Build the norm after the embedding of a stack, or None."""
        return self._wanted_norm(f"{self.root(side)}.embed_norm", self.dims.embedding_norm, "embedding_norm")

    def _wanted_norm(self, path: str, wanted: bool | None, fact: str) -> nn.Module | None:
        """The norm at `path` if the config wants one, or, where the config leaves it open, the placement does."""
        return self.norm(path) if (self._facts(kinds.placements)[fact] if wanted is None else wanted) else None

    def placement(self, layer: int | None, side: Side = "decoder", sublayer: int = 0, around: Sublayer = "both") -> Any:
        """Build the placement of one sublayer; layer None: the one that opens and closes the residual stream."""
        return self._make(
            kinds.placements,
            f"{self.root(side)}.placement.{layer}.{sublayer}",
            layer,
            side,
            d_model=self.dims.d_model,
            n_layers=self.depth(side),
            sublayer=sublayer,
            around=around,
            encoder_layers=self.depth("encoder") if "encoder" in self.stacks else 0,
            decoder_layers=self.depth("decoder") if "decoder" in self.stacks else 0,
        )

    def embedding(self, side: Side = "decoder") -> nn.Module | None:
        """Build what makes the first layer's input from the rows of the token table; None for the default option."""
        if not self._in_use(kinds.embeddings):
            return None
        d = self.dims
        sizes = {"d_model": d.d_model, "vocab_size": d.vocab_size, "n_layers": self.depth(side), "max_len": d.max_len}
        return self._make(kinds.embeddings, f"{self.root(side)}.embedding", None, side, **sizes)

    def head(self) -> nn.Module | None:
        """Build what maps the logits of the output head; None for the default option."""
        if not self._in_use(kinds.heads):
            return None
        sizes = {"d_model": self.dims.d_model, "vocab_size": self.dims.vocab_size}
        return self._make(kinds.heads, kinds.heads.kind, None, "decoder", **sizes)

    def _in_use(self, registry: Registry[Any]) -> bool:
        """True if the config chooses another option of a kind than its default."""
        node = self.config.get(registry.kind)
        return node is not None and node["name"] != registry.default

    def shortcut(self, layer: int, layers: Sequence[nn.Module], path: str, side: Side) -> nn.Module | None:
        """Build what stands before a layer, or after the last of `layers`, and jumps over layers; None for none."""
        if not self._in_use(kinds.shortcuts):
            return None
        d, attentions = self.dims, (getattr(m, "self_attn", None) for m in layers)
        choice = self.choice(kinds.shortcuts.kind)
        return self._build(
            kinds.shortcuts,
            path,
            choice,
            d_model=d.d_model,
            d_head=d.head_width,
            n_heads=d.n_heads,
            vocab_size=d.vocab_size,
            layer=layer,
            n_layers=self.depth(side),
            max_len=d.max_len,
            side=side,
            value_widths=tuple(int(getattr(attention, "value_width", 0)) for attention in attentions),
        )

    def _put_shortcut(self, layer: int, layers: Sequence[nn.Module], on: nn.Module, path: str, side: Side) -> None:
        kind = kinds.shortcuts.kind
        if (made := self.shortcut(layer, layers, f"{path}.{kind}", side)) is not None:
            put_before(on, kind, made)

    def positions(self, causal: bool, side: Side = "decoder") -> tuple[list[Any], list[int]]:
        """Build the position encodings of a stack: (the run's own, then others of layers; number for each layer).

        causal: its queries see earlier keys only.
        """
        chosen, own = [self.choice("position", i, side) for i in range(self.depth(side))], self.choice("position")
        different = [own, *(c for i, c in enumerate(chosen) if c != own and c not in chosen[:i])]
        made = [self._position(causal, side, choice, i) for i, choice in enumerate(different)]
        return made, [different.index(choice) for choice in chosen]

    def _position(self, causal: bool, side: Side, choice: PartChoice, number: int) -> Any:
        d = self.dims
        return self._build(
            kinds.positions,
            f"{self.root(side)}.other_positions.{number - 1}" if number else f"{self.root(side)}.position",
            choice,
            d_model=d.d_model,
            d_head=d.head_width,
            n_heads=d.n_heads,
            n_layers=self.depth(side),
            max_len=d.max_len,
            causal=causal,
        )

    def attention(self, layer: int, path: str, side: Side = "decoder") -> nn.Module:
        """Build the attention of one layer."""
        d = self.dims
        made = self._make(
            kinds.attentions,
            path,
            layer,
            side,
            d_model=d.d_model,
            d_head=d.head_width,
            n_heads=d.n_heads,
            n_layers=self.depth(side),
            max_len=d.max_len,
            bias=d.bias,
            dropout=d.dropout,
            scale=self.scale_at(layer, side),
            inner_norm=self._inner_norm(path, "attention", layer, side),
            head_norm=lambda name, place, width: self.head_norm(name, f"{path}.{place}", width),
        )
        return self.attach("sublayer", made, path, side, layer, "cross" if path.endswith("cross_attn") else "attention")

    def mlp(self, layer: int, path: str, side: Side = "decoder") -> nn.Module:
        """Build the MLP of one layer, with its activation."""
        d = self.dims
        gated = bool(self._facts(kinds.activations, layer, side)["gated"])
        d_ff = self.inner_width(gated)
        activation = self._make(kinds.activations, f"{path}.activation", layer, side, d_ff=d_ff)
        made = self._make(
            kinds.mlps,
            path,
            layer,
            side,
            d_model=d.d_model,
            d_ff=d_ff,
            activation=activation,
            gated=gated,
            bias=d.bias,
            dropout=d.dropout,
            n_layers=self.depth(side),
            inner_norm=self._inner_norm(path, "mlp", layer, side),
        )
        return self.attach("sublayer", made, path, side, layer, "mlp")

    @property
    def gated(self) -> bool:
        """True if the run's activation is gated."""
        return bool(self._facts(kinds.activations)["gated"])

    @property
    def d_ff(self) -> int:
        """Inner width of an MLP with the run's activation."""
        return self.inner_width(self.gated)

    def inner_width(self, gated: bool) -> int:
        """Inner width of an MLP: under match=params a gated one is narrower, to have as many parameters."""
        d = self.dims
        matched = gated and self.config.get("match") == "params"
        return matched_width(d.d_model, d.inner_width, d.bias) if matched else d.inner_width

    def _inner_norm(self, path: str, sublayer: Sublayer, layer: int, side: Side) -> Callable[[int], nn.Module] | None:
        """Constructor of the norm before a sublayer's last projection, or None if the placement has none there."""
        if sublayer not in self._facts(kinds.placements, layer, side)["inner_norm"]:
            return None
        return lambda width: self.norm(f"{path}.inner_norm", width, layer, side)

    def head_norm(self, name: str, path: str, width: int) -> nn.Module:
        """The norm of queries, keys or values that an attention names: any option of the kind, with its defaults."""
        own = getattr(kinds.norms.target(name), "for_heads", None)
        with seeded(named_seed(self.seed, path)):
            try:
                made: nn.Module = own(width) if own else kinds.norms.build(name, d_model=width)
            except UserError as error:
                what = f"norm={name} cannot stand at {path}, which is {width} wide: {str(error).splitlines()[0]}"
                raise UserError(f"{what}\n    try: attention.qk_norm=none attention.v_norm=none") from None
        return made

    def layers(self, side: Side = "decoder") -> list[nn.Module]:
        """Build the layers of a stack, in order; some may share their weights."""
        found = [self.block(i, side) for i in range(self.depth(side))]
        for i, layer in enumerate(found):
            self._put_shortcut(i, found, layer, f"{self.root(side)}.layers.{i}", side)
        owners = dict[int, nn.Module]()
        numbers = shared_layers.owners(len(found), self.dims.distinct_layers, self.dims.sharing)
        for number, layer in zip(numbers, found, strict=True):
            share_weights(owners.setdefault(number, layer), layer)
        return found

    def siblings(self, layers: Sequence[nn.Module], side: Side = "decoder") -> list[nn.Module]:
        """Build siblings of a decoder's last layer: one per token that the objective predicts beyond the next one."""
        count, last = self.ahead - 1 if side == "decoder" else 0, self.depth(side) - 1
        paths = [f"{self.root(side)}.further.{i}" for i in range(count)]
        found = [self.block(last, side, path) for path in paths]
        for path, sibling in zip(paths, found, strict=True):
            self._put_shortcut(last, layers, sibling, path, side)
        return found

    def block(self, layer: int, side: Side = "decoder", path: str = "") -> nn.Module:
        """Build one layer; path: its place in the model, by default the layer's own."""
        path = path or f"{self.root(side)}.layers.{layer}"
        # LLaMA's names for the first two norms of a layer; placements with more norms get numbers.
        names = iter(("input_layernorm", "post_attention_layernorm", *(f"norm_{i}" for i in range(2, 16))))
        sublayers = iter(range(16))
        crossed = side == "decoder" and "encoder" in self.stacks
        without = [r.kind for r in (kinds.attentions, kinds.mlps) if self._facts(r, layer, side)["absent"]]
        parts = LayerParts(
            layer=layer,
            n_layers=self.depth(side),
            attention=None if "attention" in without else lambda: self.attention(layer, f"{path}.self_attn", side),
            cross=(lambda: self.attention(layer, f"{path}.cross_attn", side)) if crossed else None,
            mlp=None if "mlp" in without else lambda: self.mlp(layer, f"{path}.mlp", side),
            norms=lambda around: self.norms(f"{path}.{next(names)}", around, layer, side),
            placement=lambda around: self.placement(layer, side, next(sublayers), around),
        )
        return self.attach("layer", self._make(kinds.blocks, path, layer, side, parts=parts), path, side, layer)

    def attach(
        self,
        place: Place,
        module: nn.Module,
        path: str,
        side: Side,
        layer: int | None = None,
        sublayer: Sublayer | Literal[""] = "",
    ) -> nn.Module:
        """The module at `path` with the parts on it whose kinds attach there (`Registry.attaches`)."""
        sizes = {"d_model": self.dims.d_model, "n_layers": self.depth(side), "max_len": self.dims.max_len}
        for registry in chosen_at(place, self.config):
            if self.choice(registry.kind, layer, side).name != registry.default:
                made = self._make(registry, f"{path}.{registry.kind}", layer, side, sublayer=sublayer, **sizes)
                put_on(module, registry.kind, made)
        return module

    def _make(self, registry: Registry[T], path: str, layer: int | None, side: Side, **wiring: Any) -> T:
        """Build the part of a kind that is chosen for a layer, seeded by its place in the model."""
        return self._build(registry, path, self.choice(registry.kind, layer, side), layer=layer, side=side, **wiring)

    def _build(self, registry: Registry[T], path: str, choice: PartChoice, **wiring: Any) -> T:
        with seeded(named_seed(self.seed, path)):
            made = registry.build(choice.name, choice.knobs, **wiring)
        if isinstance(made, nn.Module):
            # Scheduled knobs find their modules by these.
            made.built_as = registry.kind  # type: ignore[assignment]
            made.scheduled_knobs = {k.name for k in registry[choice.name].knobs} - choice.own  # type: ignore[assignment]
        return made


def n_norms(facts: Mapping[str, Any], around: Sublayer, layer: int) -> int:
    """Return the number of norms that a placement with these facts uses around a sublayer of this layer."""
    first = facts["first_norms"]
    count: int | list[int] = facts["n_norms"] if layer or first is None else first
    return count if isinstance(count, int) else count[around == "mlp"]
