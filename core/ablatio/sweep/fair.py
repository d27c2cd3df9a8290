"""Arms of equal size: d_ff, layers or steps change until parameters, FLOPs or time are the baseline's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ablatio.errors import ConfigError, Problem
from ablatio.sweep import weights
from ablatio.sweep.arms import Cell, Planner

MEASURES = ("params", "flops", "time")
CLOSE = 0.01  # what counts as equal
TRIES = 24
TIMES = 10  # steps that are timed for match=time


class Matching:
    """Resizes cells to the baseline; `found` says for each arm what was changed and how near it came."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        settings = planner.sweep.settings
        self.what = str(settings["match"])
        self.key = str(settings["resize"] or ("train.steps" if self.what == "time" else "model.d_ff"))
        self.found: dict[str, dict[str, Any]] = {}
        self._target: float | None = None
        self._seconds: dict[str, float] = {}
        if self.what == "params" and self.key == "train.steps":
            raise ConfigError([Problem("resize", "more steps make no parameters", "resize=model.d_ff")])
        if self.what == "time" and self.key != "train.steps":
            what = f"time is measured, and {self.key} would have to be measured at each width"
            raise ConfigError([Problem("resize", what, "resize=train.steps")])

    def matched(self, cells: Sequence[Cell]) -> list[Cell]:
        return [self.one(cell) for cell in cells]

    @property
    def target(self) -> float:
        """What the baseline has."""
        if self._target is None:
            overrides = self.planner.applicable(self.planner.sweep.first)[1]
            self._target = self.measure(self.planner.composer.compose(overrides).config)
        return self._target

    def one(self, cell: Cell) -> Cell:
        """The cell at the size of the baseline."""
        now, value = _now(cell.config, self.key), self.measure(cell.config)
        if not value:
            raise ConfigError([Problem("match", f"{cell.label} is too large to be timed", "match=flops")])
        size = now
        if abs(value / self.target - 1) > CLOSE:
            size, value = nearest(lambda n: self._at(cell, n), now, self.target)
        changed = {self.key: str(size)} if size != now else {}
        residual = value / self.target - 1
        self.found[cell.label] = {"what": self.what, "value": value, "residual": residual, "set": changed}
        return replace(cell, more={**cell.more, **changed})

    def _at(self, cell: Cell, size: int) -> float:
        if self.key == "train.steps":  # in proportion, and nothing is timed twice
            return self.measure(cell.config) * size / _now(cell.config, self.key)
        return self.measure(self.planner.composed(cell, {self.key: str(size)}).config)

    def measure(self, config: Mapping[str, Any]) -> float:
        if self.what == "params":
            return float(weights.parameters(config))
        if self.what == "flops":
            return weights.train_flops(config)
        steps = int(config["train"]["steps"])
        train = {k: v for k, v in config["train"].items() if k != "steps"}
        timed = str({k: v for k, v in config.items() if k not in ("seed", "seeds", "out", "name")} | {"train": train})
        if timed not in self._seconds:
            self._seconds[timed] = weights.seconds_per_step(config, TIMES)
        return self._seconds[timed] * steps


def _now(config: Mapping[str, Any], key: str) -> int:
    """The size that the config has; an open d_ff is 4 d_model."""
    section, _, name = key.partition(".")
    value = config[section][name]
    return int(value) if value is not None else 4 * int(config["model"]["d_model"])


def nearest(of: Callable[[int], float], start: int, target: float) -> tuple[int, float]:
    """(n, of(n)) with of(n) nearest to the target; `of` grows with n, in a nearly straight line."""
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
