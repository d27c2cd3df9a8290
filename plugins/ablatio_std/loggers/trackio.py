"""Trackio's database on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ablatio import loggers
from ablatio_std.loggers._common import BatchedRows, Row, needs, quiet

LOCAL = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@loggers.register("trackio")
class Trackio(BatchedRows):
    """Trackio database in trackio/ beside the run's folder, shared by a sweep: `TRACKIO_DIR=runs/trackio trackio show`.

    Rows are written directly to the database: no server is started, and nothing is sent to a Space.
    Source: Trackio, https://github.com/gradio-app/trackio
    """

    packages = ("trackio=ablatio[trackio]",)

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: Annotated[str, "name of the Trackio project that holds the runs"] = "ablatio",
    ) -> None:
        super().__init__()
        needs("trackio", "trackio")
        self.folder, self.config, self.project = folder, config, project

    def open(self) -> None:
        folder = self.folder.absolute().parent / "trackio"
        with quiet("trackio", TRACKIO_DIR=str(folder), **LOCAL):
            from trackio import sqlite_storage

            sqlite_storage.TRACKIO_DIR = folder  # trackio reads the variable only at its first import
            self.storage = sqlite_storage.SQLiteStorage
            self.storage.delete_run(self.project, self.folder.name, run_id=self.folder.name)

    def insert(self, rows: Sequence[Row]) -> None:
        with quiet("trackio", **LOCAL):
            metrics = [{k: v for k, v in row.items() if k != "step"} for row in rows]
            steps, name = [int(row["step"]) for row in rows], self.folder.name
            self.storage.bulk_log(self.project, name, metrics, steps=steps, run_id=name, config=dict(self.config))
