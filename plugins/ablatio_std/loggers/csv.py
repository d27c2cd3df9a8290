"""The table of metrics that every run writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatio import loggers
from ablatio.training.metrics_csv import MetricsFile


@loggers.register("csv")
class Csv:
    """metrics.csv in the run's folder, with one row per log: the file that reports read, written by every run.

    Source: ablatio.
    """

    record = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.file = MetricsFile(self.path)
        self.file.start()
        for row in rows:
            self.file.write(row)

    def log(self, row: Mapping[str, float]) -> None:
        self.file.write(row)

    def finish(self, status: str) -> None:
        """Do nothing: each row is on the disk already."""
