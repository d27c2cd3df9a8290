"""What a sweep varies: axes and arms; what a searching design asks for, and what it is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Arm = Mapping[str, str]  # axis -> value, as they were written; the seed is no part of it


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies, and its values as Hydra's grammar has them (`norm`: layernorm, rmsnorm).

    An interval is one value, `interval(0.1, 1)`; `tag(log, interval(1e-4, 1e-2))` is even on a logarithmic scale.
    """

    key: str
    values: tuple[str, ...]

    @property
    def interval(self) -> Interval | None:
        return Interval.read(self.values[0]) if len(self.values) == 1 else None

    def at(self, u: float) -> str:
        """The value at the share 0 <= u < 1 of the way through the axis."""
        interval = self.interval
        return interval.at(u) if interval else self.values[int(u * len(self.values))]


@dataclass(frozen=True, slots=True)
class Interval:
    """low <= x <= high, as Hydra writes it; `whole`: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> Interval | None:
        found = _INTERVAL.fullmatch(text.replace(" ", ""))
        if found is None:
            return None
        return cls(float(found["low"]), float(found["high"]), "log" in text, "int(" in text)

    def at(self, u: float) -> str:
        if self.log:
            x = self.low * (self.high / self.low) ** u
        elif self.whole:
            x = self.low + u * (self.high + 1 - self.low)  # each integer has an equal share
        else:
            x = self.low + u * (self.high - self.low)
        return str(min(int(x), int(self.high))) if self.whole else f"{x:.6g}"


_INTERVAL = re.compile(r"(?:tag\(log,)?(?:int\()?interval\((?P<low>[-+.\de]+),(?P<high>[-+.\de]+)\)+")


@dataclass(frozen=True, slots=True)
class Trial:
    """An arm to try.

    share  of its own schedule, after which it is scored; a later ask with a larger share goes on from there
    final  it runs with each seed of the sweep, which no trial has seen; only such runs are compared
    """

    arm: Arm
    share: float = 1.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What became of an ask: its held-out loss in nats per token, infinite when it failed."""

    ask: Trial
    loss: float
