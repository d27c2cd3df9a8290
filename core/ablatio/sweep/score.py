"""The score that a run's task is judged by, out of its summary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNITS = {"val/loss": "nats/token", "val/bpb": "bits/byte"}


@dataclass(frozen=True, slots=True)
class Score:
    """better: lower | higher"""

    name: str
    value: float
    better: str = "lower"

    @property
    def cost(self) -> float:
        """What is smaller the better the run is."""
        return self.value if self.better == "lower" else -self.value

    def __str__(self) -> str:
        unit = UNITS.get(self.name)
        return f"val {self.value:.4f} {unit}" if unit else f"{self.name} {self.value:.4f}"


def score_of(summary: Mapping[str, Any]) -> Score | None:
    """None where the run has no score (yet), or one that is no number."""
    found = summary.get("score") or {"name": "val/loss", "value": summary.get("val/loss"), "better": "lower"}
    value = found["value"]
    return Score(found["name"], float(value), found["better"]) if value is not None and math.isfinite(value) else None


def cost_of(summary: Mapping[str, Any]) -> float:
    """What runs are sorted by, the best first; those without a score are last."""
    score = score_of(summary)
    return score.cost if score else math.inf
