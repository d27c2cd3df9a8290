"""Search space of a sweep: axes and arms, the trials that a searching design requests, and their results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Arm = Mapping[str, str]  # axis key -> value, both as text; without the seed


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies and its values in Hydra's grammar, for example `norm` with layernorm and rmsnorm.

    An interval is a single value: `interval(0.1, 1)`, or `tag(log, interval(1e-4, 1e-2))` for a logarithmic scale.
    """

    key: str
    values: tuple[str, ...]

    @property
    def interval(self) -> Interval | None:
        """The interval that this axis spans, or None for an axis with a list of values."""
        return Interval.read(self.values[0]) if len(self.values) == 1 else None

    def at(self, u: float) -> str:
        """Return the value at the fraction 0 <= u < 1 of the axis, as text."""
        interval = self.interval
        return interval.at(u) if interval else self.values[int(u * len(self.values))]


@dataclass(frozen=True, slots=True)
class Interval:
    """Interval low <= x <= high; `log`: spaced evenly in log x; `whole`: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> Interval | None:
        """Parse Hydra's `interval(low, high)`, with `tag(log, ...)` and `int(...)` around it; None if it is not one."""
        found = _INTERVAL.fullmatch(text.replace(" ", ""))
        if found is None:
            return None
        return cls(float(found["low"]), float(found["high"]), "log" in text, "int(" in text)

    @property
    def problem(self) -> str:
        """Why no value can be drawn from it, or "" if one can."""
        if not self.low < self.high:
            return f"expected an interval from low to high, got {self.low:g} to {self.high:g}"
        return f"a logarithmic interval begins above 0, got {self.low:g}" if self.log and self.low <= 0 else ""

    @property
    def spans_decades(self) -> bool:
        """True if evenly spaced values leave the lower decades of the interval almost empty."""
        return not (self.log or self.whole) and self.low > 0 and self.high >= 10 * self.low

    def at(self, u: float) -> str:
        """Return the value at the fraction 0 <= u < 1 of the interval, as text."""
        if self.log:
            x = self.low * (self.high / self.low) ** u
        elif self.whole:
            x = self.low + u * (self.high + 1 - self.low)  # + 1: each integer gets an equal share of u
        else:
            x = self.low + u * (self.high - self.low)
        return str(min(int(x), int(self.high))) if self.whole else f"{x:.6g}"


_INTERVAL = re.compile(r"(?:tag\(log,)?(?:int\()?interval\((?P<low>[-+.\de]+),(?P<high>[-+.\de]+)\)+")


@dataclass(frozen=True, slots=True)
class Trial:
    """An arm that a searching design wants to run.

    share  fraction of the arm's training schedule to run before it is scored; a later trial of the same arm with a
           larger share continues from there
    final  the arm runs with every seed of the sweep, none of which a trial has used; only final runs are compared
    """

    arm: Arm
    share: float = 1.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Result of a trial: its held-out loss in nats per token, infinite if the run failed."""

    ask: Trial
    loss: float
