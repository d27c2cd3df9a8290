"""Trackio, on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ablatio import loggers
from ablatio_std.loggers._common import Collected, Row, needs, quiet

LOCAL = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@loggers.register("trackio")
class Trackio(Collected):
    """trackio/ beside the run's folder, so that the runs of a sweep share it: `TRACKIO_DIR=runs/trackio trackio show`.

    The rows go straight into its database: no server is started, and nothing is sent to a Space.
    Source: Trackio, https://github.com/gradio-app/trackio
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: Annotated[str, "the name under which Trackio shows the runs together"] = "ablatio",
    ) -> None:
        super().__init__()
        needs("trackio", "trackio")
        self.folder, self.config, self.project = folder, config, project

    def open(self) -> None:
        place = self.folder.absolute().parent / "trackio"
        with quiet("trackio", TRACKIO_DIR=str(place), **LOCAL):
            from trackio import sqlite_storage

            sqlite_storage.TRACKIO_DIR = place  # it reads the variable once, when it is first imported
            self.storage = sqlite_storage.SQLiteStorage
            self.storage.delete_run(self.project, self.folder.name, run_id=self.folder.name)

    def insert(self, rows: Sequence[Row]) -> None:
        with quiet("trackio", **LOCAL):
            metrics = [{k: v for k, v in row.items() if k != "step"} for row in rows]
            steps, name = [int(row["step"]) for row in rows], self.folder.name
            self.storage.bulk_log(self.project, name, metrics, steps=steps, run_id=name, config=dict(self.config))
