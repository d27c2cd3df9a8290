"""The main score of a run's task, from its summary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNITS = {"val/loss": "nats/token", "val/bpb": "bits/byte"}


@dataclass(frozen=True, slots=True)
class Score:
    """A score; better: lower | higher."""

    name: str
    value: float
    better: str = "lower"

    @property
    def cost(self) -> float:
        """Value to minimize: smaller is better."""
        return self.value if self.better == "lower" else -self.value

    def __str__(self) -> str:
        unit = UNITS.get(self.name)
        return f"val {self.value:.4f} {unit}" if unit else f"{self.name} {self.value:.4f}"


def score_of(summary: Mapping[str, Any]) -> Score | None:
    """Return the main score of a summary; None if there is none or it is not finite."""
    found = summary.get("score") or {"name": "val/loss", "value": summary.get("val/loss"), "better": "lower"}
    value = found["value"]
    return Score(found["name"], float(value), found["better"]) if value is not None and math.isfinite(value) else None


def cost_of(summary: Mapping[str, Any]) -> float:
    """Sort key of runs, the best first; runs without a score come last."""
    score = score_of(summary)
    return score.cost if score else math.inf
