"""The largest model of a config's shape that fits the memory of its devices: with more layers, or wider ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ablatio.config.schema import check
from ablatio.model.cost.memory import SEVERAL, activations_counted_once
from ablatio.registry import per_layer
from ablatio.training.memory_per_device import memory_per_device, world_of
from ablatio.training.run_spec import RunSpec

MOST = 10_000  # layers or heads: those of an empty part would fit without end
BUILT = 16  # layers up to which a model is built to count its memory
LONGEST = 32  # layers of a pattern that are built several times to count those of deeper models


@dataclass(frozen=True, slots=True)
class Fitting:
    """Settings of a model that fits, its parameters, and the bytes that each device needs at its peak."""

    settings: Mapping[str, int]  # by key, such as model.n_layers
    parameters: int
    bytes: int


@activations_counted_once()
def deepest(config: Mapping[str, Any], room: float) -> Fitting | None:
    """The largest model.n_layers at the config's width whose training takes `room` bytes on a device; None if no one.

    Weights, gradients, optimizer state, activations of the batch and buffers count, as `memory_per_device` gives them.
    """
    return _largest(config, _layers, room, 1, _Depths(config))


def widest(config: Mapping[str, Any], room: float) -> Fitting | None:
    """The largest model.n_heads at the config's depth; heads keep their width, d_ff and key heads their ratio to them.

    The number of heads grows in the smallest steps, fractions of the config's own number, that its parts and strategy
    allow.
    """
    sizes = {f"model.{name}": config["model"][name] for name in ("n_heads", "d_model", "d_ff")}
    sizes["attention.n_kv_heads"] = config["attention"].get("n_kv_heads")
    heads = int(sizes["model.n_heads"])

    def scaled(count: int) -> dict[str, int]:
        return {name: int(size) * count // heads for name, size in sizes.items() if size}

    fractions = [n for n in range(1, heads + 1) if heads % n == 0]
    step = next((n for n in fractions if not _problems(config, scaled(heads + n))), heads)
    return _largest(config, lambda n: scaled(n * step), room, 2, lambda n: _counted(config, scaled(n * step)))


def _layers(number: int) -> dict[str, int]:
    return {"model.n_layers": number}


def _counted(config: Mapping[str, Any], sizes: Mapping[str, int]) -> Fitting:
    """Build the model without its tensors and count."""
    spec = RunSpec(_with(config, sizes))
    return Fitting(sizes, spec.parameters, memory_per_device(spec).total)


class _Depths:
    """Parameters and memory by number of layers; those of deep models follow from models that are quickly built.

    f(n) = f(a) + (n - a) / p * (f(a + p) - f(a)), where p is the period of the options per layer and of the division
    among devices, and a = n mod p + a multiple of p.  It holds where all layers of a period cost the same: if it does
    not hold at a + 2p and at about 2a, the model is built.  a is at least 2 SEVERAL: above, activations are a line.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        lists, single = per_layer.section(config)
        cycles = [len(per_layer.expanded(per_layer.read_list(value))) for value in lists.values()]
        self.period = math.lcm(world_of(config), *cycles)
        # Layers that are named one by one exist in all models that are compared.
        named = [abs(int(layer)) + 1 for layers in single.values() for layer in layers]
        self.least = max([2 * SEVERAL, *named])
        self._counts: dict[int, Fitting] = {}
        self._straight: dict[int, bool] = {}  # by n mod p

    def __call__(self, number: int) -> Fitting:
        first = self.least + (number - self.least) % self.period
        steps = (number - first) // self.period
        if number <= BUILT or self.period > LONGEST or steps < 1 or not self._is_straight(first):
            return self._built(number)
        return self._extended(first, steps)

    def _extended(self, first: int, steps: int) -> Fitting:
        one, two = self._built(first), self._built(first + self.period)
        parameters = one.parameters + steps * (two.parameters - one.parameters)
        return Fitting(_layers(first + steps * self.period), parameters, one.bytes + steps * (two.bytes - one.bytes))

    def _is_straight(self, first: int) -> bool:
        if first not in self._straight:
            self._straight[first] = all(
                self._extended(first, steps) == self._built(first + steps * self.period)
                for steps in (2, math.ceil(first / self.period))
            )
        return self._straight[first]

    def _built(self, number: int) -> Fitting:
        if number not in self._counts:
            self._counts[number] = _counted(self.config, _layers(number))
        return self._counts[number]


def _largest(
    config: Mapping[str, Any],
    sizes: Callable[[int], dict[str, int]],
    room: float,
    degree: int,
    counted: Callable[[int], Fitting],
) -> Fitting | None:
    """The model of the largest number whose `sizes` fit; memory is about a + b number^degree, exact for layers.

    Each guess comes from two numbers on both sides of the answer, or the last two below it: with layers the third one
    is right, and a search by halves would build many models that are too large.
    """
    known: dict[int, Fitting] = {}  # in the order of their numbers
    low, high, guess = 0, MOST, 1
    while high - low > 1:
        # Some numbers are none: heads that a strategy does not divide.  The next one below, else above, is taken.
        near = chain(range(guess, low, -1), range(guess + 1, high))
        number = next((n for n in near if not _problems(config, sizes(n))), None)
        if number is None:
            break
        known[number] = counted(number)
        low, high = (number, high) if known[number].bytes <= room else (low, number)
        known = dict(sorted(known.items()))
        below, above = [n for n in known if n <= low], [n for n in known if n >= high]
        first, second = ([0, 0, *below, *above[:1]])[-2:]
        guess = min(max(_interpolated(known, first, second, room, degree), low + 1), high - 1)
    return known.get(low)


def _interpolated(known: Mapping[int, Fitting], first: int, second: int, room: float, degree: int) -> int:
    """The number whose memory is `room` on the curve a + b number^degree through two known ones; one more for one."""
    if first not in known:
        return second + 1
    least, rise = known[first].bytes, known[second].bytes - known[first].bytes
    # A part may need no memory of its own; then any number fits.
    power = first**degree + (second**degree - first**degree) * (room - least) / rise if rise > 0 else MOST**degree
    return int(max(power, 0.0) ** (1 / degree) + 1e-9)


def _with(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    found = {**config, "model": dict(config["model"]), "attention": dict(config["attention"])}
    for name, size in sizes.items():
        section, _, key = name.partition(".")
        found[section][key] = size
    return found


def _problems(config: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    return bool(check(_with(config, sizes)))
