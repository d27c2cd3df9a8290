"""MLflow's tracking database."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from ablatio import loggers
from ablatio.errors import UserError
from ablatio_std.loggers._common import BatchedRows, Row, exclusive, flat, needs, quiet

STATUS = {"done": "FINISHED", "preempted": "KILLED"}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is away must not hold up the training for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@loggers.register("mlflow")
class MLflow(BatchedRows):
    """MLflow database mlflow.db beside the run's folder, shared by a sweep: `mlflow ui --backend-store-uri URI`.

    With a `uri` of http or https, the runs are sent to that tracking server.  A resumed run replaces its entry.
    Source: MLflow, https://mlflow.org
    """

    packages = ("mlflow=ablatio[mlflow]",)

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        uri: Annotated[str | None, "sqlite:///PATH or a server; null: mlflow.db beside the run's folder"] = None,
        experiment: Annotated[str, "name of the MLflow experiment that holds the runs"] = "ablatio",
        run_name: Annotated[str | None, "name of the run in MLflow; null: that of its folder"] = None,
        tags: Annotated[tuple[str, ...], "tags of the run: [KEY:VALUE]"] = (),
    ) -> None:
        super().__init__()
        needs("mlflow", "mlflow")
        if uri is not None and not uri.startswith(("sqlite:///", "http://", "https://")):
            raise UserError(
                f"logger.mlflow.uri={uri} came, sqlite:///PATH or http(s)://HOST was expected: MLflow no longer "
                "supports plain folders\n    try: logger.mlflow.uri=sqlite:///runs/mlflow.db"
            )
        if wrong := [tag for tag in tags if ":" not in tag]:
            raise UserError(f"logger.mlflow.tags has {wrong[0]!r}, KEY:VALUE was expected\n    try: tag:{wrong[0]}")
        self.tags = dict(tag.split(":", 1) for tag in tags)
        self.run_name = run_name or folder.name
        self.folder, self.config, self.experiment = folder, config, experiment
        self.uri = uri or f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"

    @contextmanager
    def _database(self) -> Iterator[None]:
        """Lock the database: two processes that create its tables at once, which takes seconds, would both fail."""
        with quiet("mlflow", **QUIET):
            if not self.uri.startswith("sqlite:///"):
                yield
                return
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (a slow import, done before taking the lock)

            path = Path(self.uri.removeprefix("sqlite:///"))
            with exclusive(path), nullcontext() if path.exists() else _fast_table_creation():
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
            tags = self.tags | {"folder": name.replace("'", "")}
            self.id = self.client.create_run(experiment, tags=tags, run_name=self.run_name).info.run_id
            params = [Param(key, str(value)[:6000]) for key, value in flat(self.config).items()]
            for i in range(0, len(params), 100):  # MLflow's limit for one call
                self.client.log_batch(self.id, params=params[i : i + 100])

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        if not self.uri.startswith("sqlite:///"):  # the server knows where it keeps files
            return str(self.client.create_experiment(self.experiment))
        files = self.folder.absolute().parent / "mlflow-files"
        return str(self.client.create_experiment(self.experiment, artifact_location=files.as_uri()))

    def insert(self, rows: Sequence[Row]) -> None:
        with self._database():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            numbers = [(k, v, int(row["step"])) for row in rows for k, v in row.items() if k != "step"]
            metrics = [Metric(name, float(value), now, step) for name, value, step in numbers]
            for i in range(0, len(metrics), 1000):  # MLflow's limit for one call
                self.client.log_batch(self.id, metrics=metrics[i : i + 1000], synchronous=True)

    def close(self, status: str) -> None:
        with self._database():
            self.client.set_terminated(self.id, STATUS.get(status, "FAILED"))


@contextmanager
def _fast_table_creation() -> Iterator[None]:
    """Do not sync a new database to disk: MLflow creates its tables in 80 commits, which would take 10 s."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def disable_sync(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", disable_sync)
    try:
        yield
    finally:
        event.remove(Engine, "connect", disable_sync)
