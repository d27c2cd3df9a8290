"""Memory that a run takes on each of its devices, by the formulas of its strategy."""

from collections.abc import Mapping
from typing import Any

from ablatio.model.cost.memory import WIDTH
from ablatio.model.cost.parameters import meta_model
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.part_choices import PartChoice, piece_of
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Strategy, layers_of
from ablatio.registry import kinds
from ablatio.training.rank_environment import several_devices
from ablatio.training.run_spec import RunSpec


class PlannedRanks(Ranks):
    """Ranks of a run that has not started, as rank 0 would see them."""

    def __init__(self, world: int) -> None:
        self.world = world


def world_of(config: Mapping[str, Any]) -> int:
    """Number of devices of a run."""
    return int(config["trainer"]["devices"]) * int(config["trainer"]["nodes"])


def memory_per_device(spec: RunSpec) -> DeviceMemory:
    """Memory of each device of a run; optimizer state and activations that are unknown count 0."""
    config, found = spec.config, spec.memory
    model = meta_model(config, spec.vocabulary)
    held = {id(p): p.numel() for p in model.parameters()}
    rows = int(config["train"]["batch_size"])
    layers = [{id(p): p.numel() for p in layer.parameters()} for layer in layers_of(model)]
    inside: dict[int, int] = {}
    for layer in layers:
        inside |= layer
    one = DeviceMemory(
        found.weights,
        found.gradients,
        found.optimizer or 0,
        found.beside,
        (found.activations or 0) * rows,
        layer=WIDTH * max((sum(layer.values()) for layer in layers), default=0),
        outside=WIDTH * (sum(held.values()) - sum(inside.values())),
        layers=tuple(WIDTH * sum(layer.values()) for layer in layers),
        rows=rows,
    )
    if not several_devices(config["trainer"]):
        return one
    choice = PartChoice.of(config["strategy"])
    strategy: Strategy = kinds.strategies.build(choice.name, choice.knobs, ranks=PlannedRanks(world_of(config)))  # type: ignore[assignment]
    return strategy.memory(one, piece_of(PartChoice.of(config["optimizer"])))
