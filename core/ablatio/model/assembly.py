"""From names to a model: each part is built with the wiring that it asks for, and starts from its own seed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ablatio import kinds
from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.model.roles import describe, named_generator, named_seed
from ablatio.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """An option and the values of its knobs."""

    name: str
    knobs: Mapping[str, Any]

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Choice":
        return cls(node["name"], {k: v for k, v in node.items() if k != "name"})


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model.  d_head and d_ff may be left open: d_model / n_heads, and 4 d_model."""

    d_model: int
    n_layers: int
    n_heads: int
    max_len: int
    vocab_size: int
    d_head: int | None = None
    d_ff: int | None = None
    tied: bool = True
    bias: bool = False
    dropout: float = 0.0

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def inner_width(self) -> int:
        return self.d_ff or 4 * self.d_model


def matched_width(d_model: int, d_ff: int, bias: bool) -> int:
    """The d_ff of a gated MLP with the parameters of a plain one: 3 d f' (+ biases) = 2 d f (+ biases).

    Of the widths within 1 % the one that divides by the largest power of two up to 8: matrix products like it.
    """
    plain = 2 * d_model * d_ff + (d_ff + d_model if bias else 0)
    exact = (plain - (d_model if bias else 0)) / (3 * d_model + (2 if bias else 0))
    for step in (8, 4, 2, 1):
        width = max(step, round(exact / step) * step)
        if abs(width - exact) <= 0.01 * exact:
            return width
    return max(1, round(exact))


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a block is made of: call these in the order in which the block holds them."""

    attention: Callable[[], nn.Module]
    mlp: Callable[[], nn.Module]
    norms: Callable[[], nn.Module]
    placement: Callable[[], Any]


class Assembly:
    """Makes a model out of a resolved config: one Choice per kind, Dimensions, and the seed of the initial weights."""

    def __init__(self, config: Mapping[str, Any], vocab_size: int, eos: int = 0, seed: int = 0) -> None:
        self.config, self.eos, self.seed = config, eos, seed
        self.dims = Dimensions(vocab_size=vocab_size, **config["model"])
        self.gated = bool(kinds.activations[self.choice("activation").name].facts["gated"])
        self.d_ff = self.dims.inner_width
        if self.gated and config.get("match") == "params":
            self.d_ff = matched_width(self.dims.d_model, self.dims.inner_width, self.dims.bias)

    def choice(self, kind: str) -> Choice:
        return Choice.of(self.config[kind])

    def model(self) -> LanguageModel:
        """The whole model, initialised: the weights of a part depend on its name and the seed, on nothing else."""
        choice = self.choice("architecture")
        with _seeded(self.seed):  # arms of other sizes leave the global generator, and so the dropout, as it was
            model = kinds.architectures.build(choice.name, choice.knobs, assembly=self)
        placement = self.placement(0)
        initialise(model, self.choice("init"), self.seed, self.dims.n_layers, placement.gain)
        return model

    def norm(self, path: str) -> nn.Module:
        return self._make(kinds.norms, path, d_model=self.dims.d_model)

    def norms(self, path: str) -> nn.Module:
        """As many norms as the placement wants for one sublayer: one module, or a list."""
        count = int(kinds.placements[self.choice("placement").name].facts["n_norms"])
        if count == 1:
            return self.norm(path)
        return nn.ModuleList([self.norm(f"{path}.{i}") for i in range(count)])

    def final_norm(self) -> nn.Module | None:
        wanted = kinds.placements[self.choice("placement").name].facts["final_norm"]
        return self.norm("model.norm") if wanted else None

    def placement(self, layer: int) -> Any:
        d = self.dims
        return self._make(kinds.placements, f"placement.{layer}", d_model=d.d_model, n_layers=d.n_layers, layer=layer)

    def position(self, causal: bool) -> Any:
        d = self.dims
        return self._make(
            kinds.positions,
            "model.position",
            d_model=d.d_model,
            d_head=d.head_width,
            n_heads=d.n_heads,
            n_layers=d.n_layers,
            max_len=d.max_len,
            causal=causal,
        )

    def attention(self, layer: int, path: str) -> nn.Module:
        d = self.dims
        return self._make(
            kinds.attentions,
            path,
            d_model=d.d_model,
            d_head=d.head_width,
            n_heads=d.n_heads,
            n_layers=d.n_layers,
            max_len=d.max_len,
            bias=d.bias,
            dropout=d.dropout,
            layer=layer,
        )

    def mlp(self, layer: int, path: str) -> nn.Module:
        d = self.dims
        activation = self._make(kinds.activations, f"{path}.activation", d_ff=self.d_ff)
        return self._make(
            kinds.mlps,
            path,
            d_model=d.d_model,
            d_ff=self.d_ff,
            activation=activation,
            gated=self.gated,
            bias=d.bias,
            dropout=d.dropout,
            layer=layer,
        )

    def block(self, layer: int) -> nn.Module:
        path = f"model.layers.{layer}"
        names = iter(("input_layernorm", "post_attention_layernorm", *(f"norm_{i}" for i in range(2, 16))))
        parts = LayerParts(
            attention=lambda: self.attention(layer, f"{path}.self_attn"),
            mlp=lambda: self.mlp(layer, f"{path}.mlp"),
            norms=lambda: self.norms(f"{path}.{next(names)}"),
            placement=lambda: self.placement(layer),
        )
        return self._make(kinds.blocks, path, parts=parts)

    def _make(self, registry: Registry[T], path: str, **wiring: Any) -> T:
        choice = self.choice(registry.kind)
        with _seeded(named_seed(self.seed, path)):
            return registry.build(choice.name, choice.knobs, **wiring)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What a part draws in its constructor depends on where it stands, not on what was made before it."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU's too
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


@torch.no_grad()
def initialise(model: nn.Module, choice: Choice, seed: int, n_layers: int, gain: float) -> None:
    """Draw each matrix, embedding and head anew, from a generator seeded by (seed, parameter name)."""
    init = kinds.inits.build(choice.name, choice.knobs)
    for parameter, info in describe(model, n_layers, gain):
        if parameter.is_meta:
            continue
        if info.role == "vector":
            if info.name.endswith(".bias"):
                parameter.zero_()
            continue
        weight = torch.empty(parameter.shape, dtype=torch.float32)
        init(weight, info, named_generator(seed, info.name))
        parameter.copy_(weight.mul_(info.gain))


def build_model(config: Mapping[str, Any], vocab_size: int, eos: int = 0, seed: int = 0) -> LanguageModel:
    """A model from a resolved config and the vocabulary of its tokenizer."""
    assembly = Assembly(config, vocab_size, eos, seed)
    if assembly.dims.d_model % assembly.dims.n_heads and assembly.dims.d_head is None:
        raise UserError(f"{assembly.dims.n_heads} heads do not divide d_model={assembly.dims.d_model}")
    return assembly.model()
