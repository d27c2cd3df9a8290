import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatio import loggers


@loggers.register("lines")
class Lines:
    """metrics.jsonl in the run's folder, one JSON object per row.  Source: jsonlines.org"""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")

    def log(self, row: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def finish(self, status: str) -> None:
        """Each row is written already."""
