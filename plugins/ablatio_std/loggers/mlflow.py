"""MLflow's tracking database."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from ablatio import loggers
from ablatio.errors import UserError
from ablatio_std.loggers._common import Collected, Row, alone, flat, needs, quiet

STATUS = {"done": "FINISHED", "preempted": "KILLED"}
OFFLINE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}


@loggers.register("mlflow")
class MLflow(Collected):
    """mlflow.db beside the run's folder, so that the runs of a sweep share it: `mlflow ui --backend-store-uri URI`.

    A run that is resumed replaces what the database had of it.
    Source: MLflow, https://mlflow.org
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        uri: Annotated[str | None, "sqlite:///PATH; by default mlflow.db beside the run's folder"] = None,
        experiment: Annotated[str, "the name under which MLflow shows the runs together"] = "ablatio",
    ) -> None:
        super().__init__()
        needs("mlflow", "mlflow")
        if uri is not None and not uri.startswith("sqlite:///"):
            raise UserError(
                f"logger.mlflow.uri={uri} came, sqlite:///PATH was expected: runs are logged without a network, and "
                "MLflow keeps no runs in plain folders any more\n    try: logger.mlflow.uri=sqlite:///runs/mlflow.db"
            )
        self.folder, self.config, self.experiment = folder, config, experiment
        self.uri = uri or f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"

    @contextmanager
    def _database(self) -> Iterator[None]:
        """Two processes at once would both make its tables, which takes seconds, and both fail."""
        with quiet("mlflow", **OFFLINE):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (nobody needs to wait for this import of ours)

            path = Path(self.uri.removeprefix("sqlite:///"))
            with alone(path), nullcontext() if path.exists() else _new_tables():
                yield

    def open(self) -> None:
        with self._database():
            from mlflow import MlflowClient
            from mlflow.entities import Param

            self.client = MlflowClient(tracking_uri=self.uri)
            experiment = self._experiment()
            name = str(self.folder.absolute())
            for old in self.client.search_runs([experiment], f"tags.folder = '{name.replace(chr(39), '')}'"):
                self.client.delete_run(old.info.run_id)
            tags = {"folder": name.replace("'", "")}
            self.id = self.client.create_run(experiment, tags=tags, run_name=self.folder.name).info.run_id
            params = [Param(key, str(value)[:6000]) for key, value in flat(self.config).items()]
            for i in range(0, len(params), 100):  # as many as MLflow takes at once
                self.client.log_batch(self.id, params=params[i : i + 100])

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        files = self.folder.absolute().parent / "mlflow-files"
        return str(self.client.create_experiment(self.experiment, artifact_location=files.as_uri()))

    def insert(self, rows: Sequence[Row]) -> None:
        with self._database():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            found = [Metric(k, float(v), now, int(row["step"])) for row in rows for k, v in row.items() if k != "step"]
            for i in range(0, len(found), 1000):
                self.client.log_batch(self.id, metrics=found[i : i + 1000], synchronous=True)

    def close(self, status: str) -> None:
        with self._database():
            self.client.set_terminated(self.id, STATUS.get(status, "FAILED"))


@contextmanager
def _new_tables() -> Iterator[None]:
    """A new database does not wait for the disk: MLflow makes its tables in 80 commits, 10 s of waiting."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)
