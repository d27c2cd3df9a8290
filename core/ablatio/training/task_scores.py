"""What a task says of its scores: the names in the files, and the one that runs are compared by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablatio.registry import kinds


@dataclass(frozen=True, slots=True)
class TaskScores:
    """names: of all scores; name: of the main one; better: lower or higher."""

    names: Sequence[str]
    name: str
    better: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TaskScores":
        facts = kinds.tasks[config["task"]["name"]].facts
        return cls(facts["scores"], facts["main"], facts["better"])

    @property
    def columns(self) -> list[str]:
        return [f"val/{name}" for name in self.names]

    def row(self, found: Mapping[str, float]) -> dict[str, Any]:
        """The scores under their names in metrics.csv and summary.json; None where there is none yet."""
        return {f"val/{name}": found.get(name) for name in self.names}

    def main(self, found: Mapping[str, float]) -> dict[str, Any]:
        """What sweeps and reports rank a run by."""
        return {"name": f"val/{self.name}", "value": found.get(self.name), "better": self.better}

    def line(self, found: Mapping[str, float]) -> str:
        """For the progress bar."""
        return f"{found['bpb']:.3f} bits/byte" if "bpb" in found else f"{self.name} {found[self.name]:.3f}"
