"""Match the size of arms to the baseline: adapt d_ff, layers, steps or an adapter's rank."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ablatio.errors import ConfigError, Problem
from ablatio.registry.kinds import pefts
from ablatio.registry.value_schedules import schedules_of
from ablatio.sweep.arms import Cell, Planner
from ablatio.training import estimate
from ablatio.training.run_spec import RunSpec

MEASURES = ("params", "trainable", "bytes", "flops", "time")
CLOSE = 0.01  # relative difference that counts as equal
TRIES = 24  # sizes that a search tries at most
TIMES = 10  # steps that are timed for match=time
PEFT = "peft"  # value of resize: the knob of each arm's peft method that sets its size


class Matching:
    """Resizes the arms of a sweep to the size of its baseline.

    known  what `found` was when the study began.  Times are taken from there: timing an arm again gives a slightly
           different result, and thus a different arm
    found  attribute: for each arm what was measured (what, value), the relative difference that remains (residual), and
           the changed settings (set)

    Raises ConfigError if the knob in `resize` cannot change the measure in `match`.
    """

    def __init__(self, planner: Planner, known: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
        self.planner, self.known = planner, known
        settings = planner.sweep.settings
        self.what = str(settings["match"])
        self.resize = str(settings["resize"] or {"time": "train.steps", "trainable": PEFT}.get(self.what, "model.d_ff"))
        self.found: dict[str, dict[str, Any]] = {}
        self._target: float | None = None
        self._seconds: dict[str, float] = {}
        if self.what in ("params", "bytes") and self.resize == "train.steps":
            what = f"the number of steps does not change what match={self.what} measures"
            raise ConfigError([Problem("resize", what, "resize=model.d_ff")])
        if self.what == "time" and self.resize != "train.steps":
            what = f"match=time adapts train.steps: each value of {self.resize} would have to be timed"
            raise ConfigError([Problem("resize", what, "resize=train.steps")])
        if (self.what == "trainable") != (self.resize == PEFT):
            what = f"match={self.what} and resize={self.resize}: trainable parameters are set by a peft method"
            raise ConfigError([Problem("resize", what, "resize=null")])

    def matched(self, cells: Sequence[Cell]) -> list[Cell]:
        """Resize all cells."""
        return [self.one(cell) for cell in cells]

    @property
    def target(self) -> float:
        """Size of the baseline."""
        if self._target is None:
            overrides = self.planner.applicable(self.planner.sweep.first)[1]
            self._target = self.measure(self.planner.made(self.planner.sweep.first, overrides).config)
        return self._target

    def one(self, cell: Cell) -> Cell:
        """Resize one cell and record the change in `found`.

        Raises ConfigError if the cell is too large to be timed, or if its peft method has no suitable knob.
        """
        if self.what == "time" and (before := self.known.get(cell.label)):
            self.found[cell.label] = dict(before)
            return replace(cell, more={**cell.more, **before["set"]})
        value = self.measure(cell.config)
        if not value:
            raise ConfigError([Problem("match", f"{cell.label} is too large to be timed", "match=flops")])
        changed: dict[str, str] = {}
        if abs(value / self.target - 1) > CLOSE:
            key = self._peft_knob(cell) if self.resize == PEFT else self.resize
            now = _now(cell.config, key)
            size, value = nearest(lambda n: self._at(cell, key, n), now, self.target)
            changed = {key: str(size)} if size != now else {}
        residual = value / self.target - 1
        self.found[cell.label] = {"what": self.what, "value": value, "residual": residual, "set": changed}
        return replace(cell, more={**cell.more, **changed})

    def _at(self, cell: Cell, key: str, size: int) -> float:
        """Size of the cell with the setting `key` at `size`."""
        if key == "train.steps" and not schedules_of(cell.config):  # proportional, so no second timing is needed
            return self.measure(cell.config) * size / _now(cell.config, key)
        return self.measure(self.planner.composed(cell, {key: str(size)}).config)

    def _peft_knob(self, cell: Cell) -> str:
        """Return the first integer knob of the peft method that adds trainable parameters (rank, width, tokens)."""
        peft = cell.config[PEFT]
        for knob in pefts[peft["name"]].knobs:
            now = peft[knob.name]
            if type(now) is int and self._at(cell, key := f"{PEFT}.{knob.name}", 2 * now) > self.measure(cell.config):
                return key
        what = f"{cell.label}: peft={peft['name']} has no knob that changes the number of trainable parameters"
        raise ConfigError([Problem("match", what, "match=none")])

    def measure(self, config: Mapping[str, Any]) -> float:
        """Measure a config: parameters, trainable parameters, bytes of its weights, FLOPs, or seconds of training."""
        spec = RunSpec(config)
        if self.what == "params":
            return float(spec.parameters)
        if self.what == "trainable":
            return float(spec.trainable)
        if self.what == "bytes":
            return float(spec.stored_bytes)
        if self.what == "flops":
            return spec.train_flops
        train = {k: v for k, v in config["train"].items() if k != "steps"}
        timed = str({k: v for k, v in config.items() if k not in ("seed", "seeds", "out", "name")} | {"train": train})
        if timed not in self._seconds:
            self._seconds[timed] = estimate.seconds_per_step(spec, TIMES)
        return self._seconds[timed] * spec.full_steps


def _now(config: Mapping[str, Any], key: str) -> int:
    """Current value of the setting `key`; an unset d_ff is 4 * d_model."""
    section, _, name = key.partition(".")
    value = config[section][name]
    return int(value) if value is not None else 4 * int(config["model"]["d_model"])


def nearest(of: Callable[[int], float], start: int, target: float) -> tuple[int, float]:
    """Return (n, of(n)) with of(n) nearest to the target, for n >= 1.

    Interpolates linearly between bounds, so `of` should grow with n almost linearly; evaluates `of` about TRIES times
    at most.
    """
    known: dict[int, float] = {}

    def value(n: int) -> float:
        if n not in known:
            known[n] = of(n)
        return known[n]

    low, high = start, start
    while value(low) > target and low > 1:
        low = max(1, low // 2)
    while value(high) < target and len(known) < TRIES:
        high *= 2
    while high - low > 1 and len(known) < TRIES:
        share = (target - value(low)) / ((value(high) - value(low)) or 1.0)
        middle = min(high - 1, max(low + 1, round(low + share * (high - low))))
        low, high = (middle, high) if value(middle) < target else (low, middle)
        if value(middle) == target:
            break
    best = min(known, key=lambda n: abs(known[n] - target))
    return best, known[best]
