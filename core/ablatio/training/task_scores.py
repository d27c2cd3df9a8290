"""Scores that a task declares: their names in files, and the main one by which runs are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablatio.registry import kinds


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Declared scores of a task.

    names   all scores
    name    the main score
    better  whether a lower or higher main score is better: lower | higher
    """

    names: Sequence[str]
    name: str
    better: str

    @classmethod
    def of(cls, config: Mapping[str, Any], more: Sequence[str] = ()) -> "TaskScores":
        """Read the scores from the facts of the config's task; more: names of further ones."""
        facts = kinds.tasks[config["task"]["name"]].facts
        return cls((*facts["scores"], *more), facts["main"], facts["better"])

    @property
    def columns(self) -> list[str]:
        """Columns of metrics.csv."""
        return [f"val/{name}" for name in self.names]

    def row(self, found: Mapping[str, float]) -> dict[str, Any]:
        """Return the scores as in metrics.csv and summary.json, {val/name: value}; None for a missing one."""
        return {f"val/{name}": found.get(name) for name in self.names}

    def main(self, found: Mapping[str, float]) -> dict[str, Any]:
        """Return name, value and direction of the score by which sweeps and reports rank runs."""
        return {"name": f"val/{self.name}", "value": found.get(self.name), "better": self.better}

    def line(self, found: Mapping[str, float]) -> str:
        """Format the main score for the progress bar; bits per byte if there is one."""
        return f"{found['bpb']:.3f} bits/byte" if "bpb" in found else f"{self.name} {found[self.name]:.3f}"
