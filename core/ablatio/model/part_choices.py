"""The parts that a config chooses, for the run and per layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ablatio.registry import kinds, per_layer
from ablatio.registry.registry import REGISTRIES, Registry


@dataclass(frozen=True, slots=True)
class PartChoice:
    """A chosen part: the option's name and the values of its knobs.

    own  schedulable knobs that a layer sets for itself: a schedule of the run does not reach them
    """

    name: str
    knobs: Mapping[str, Any]
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "PartChoice":
        """Read a choice from a section {name, knobs ...} of a config."""
        return cls(node["name"], {k: v for k, v in node.items() if k != "name"})


class PartChoices:
    """The parts of a config by kind and layer; the rules are in `ablatio.registry.per_layer`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.varied = config, per_layer.varied(config)
        self._layers = cache(self._read)

    def of_run(self, kind: str) -> PartChoice:
        """Return the part of a kind outside the layers, and in all layers that name no other."""
        return PartChoice.of(self.config[kind])

    def at(self, kind: str, layer: int, depth: int) -> PartChoice:
        """Return the part of a kind in a layer of a stack with `depth` layers."""
        return self._layers(kind, depth)[layer] if kind in self.varied else self.of_run(kind)

    def in_use(self, registry: Registry[Any]) -> list[PartChoice]:
        """Return the different parts of a kind in the layers of all stacks."""
        return [PartChoice.of(node) for node in per_layer.in_use(self.config, registry)]

    def _read(self, kind: str, depth: int) -> list[PartChoice]:
        layers, own = per_layer.nodes(self.config, REGISTRIES[kind], depth), per_layer.own_knobs
        pairs = zip(layers, own(self.config, REGISTRIES[kind], depth), strict=True)
        return [replace(PartChoice.of(node), own=knobs) for node, knobs in pairs]


def objective_of(config: Mapping[str, Any], vocab_size: int, eos: int) -> kinds.Objective:
    """Build the config's objective, which may add ids (sentinels, masks) and siblings of the last layer."""
    choice, length = PartChoice.of(config["objective"]), int(config["model"]["max_len"])
    return kinds.objectives.build(choice.name, choice.knobs, vocab_size=vocab_size, eos=eos, max_len=length)


def piece_of(optimizer: PartChoice) -> str:
    """Return what an optimizer must update together: entry, tensor or model."""
    facts = kinds.optimizers[optimizer.name].facts
    whole = facts["updates"] == "entry" and any(optimizer.knobs.get(name) for name in facts["whole_if"])
    return "tensor" if whole else str(facts["updates"])
