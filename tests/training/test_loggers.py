"""Loggers: real runs are read back with each logger's own library and must equal metrics.csv, without duplicates."""

import csv
import json
import math
import multiprocessing as mp
import os
import signal
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, metrics, summary

from ablatio.errors import UserError
from ablatio.registry import kinds
from ablatio.training.metrics_csv import MetricsFile

Points = dict[tuple[str, int], float]


def read_tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    log.Reload()
    found = [
        ((name, event.step), float(event.tensor_proto.float_val[0]))
        for name in log.Tags()["tensors"]
        if not name.startswith("config")
        for event in log.Tensors(name)
    ]
    return unique(found)


def read_mlflow(run: Path) -> Points:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy warns about its use by MLflow
        return _read_mlflow(run)


def _read_mlflow(run: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ablatio")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    mine = [r for r in found if r.info.run_name == run.name]
    assert len(mine) == 1 and mine[0].info.status == "FINISHED" and mine[0].data.params["model.d_model"] == "16"
    history = [client.get_metric_history(mine[0].info.run_id, name) for name in mine[0].data.metrics]
    return unique([((m.key, m.step), m.value) for points in history for m in points])


def read_wandb(run: Path) -> Points:
    """Read the offline run's records in LevelDB's log format: blocks of 32 KiB, a header of 7 bytes per fragment."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    data, at, pieces, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:
            at += 32768 - at % 32768
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pieces += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record, pieces = wandb_internal_pb2.Record.FromString(pieces), b""
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            found += [((k, int(items["_step"])), float(v)) for k, v in items.items() if not k.startswith("_")]
    return unique(found)


def read_trackio(run: Path) -> Points:
    from trackio import sqlite_storage

    sqlite_storage.TRACKIO_DIR = run.parent / "trackio"
    rows = sqlite_storage.SQLiteStorage.get_logs("ablatio", run.name)
    config = sqlite_storage.SQLiteStorage.get_run_config("ablatio", run.name)
    assert config is not None and config["model"]["d_model"] == 16
    return unique([((k, row["step"]), v) for row in rows for k, v in row.items() if k not in ("step", "timestamp")])


READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb, "trackio": read_trackio
}  # fmt: skip


def unique(found: list[tuple[tuple[str, int], float]]) -> Points:
    """Points as a dict; none may be logged twice, except `tokens` (logged with a step and with its validation)."""
    plain = [f for f in found if f[0][0] != "tokens"]
    assert len(plain) == len({key for key, _ in plain}), "a value is logged twice"
    return dict(plain)


def read_metrics_csv(run: Path) -> Points:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (name, int(row["step"])): float(text)
        for row in rows
        for name, text in row.items()
        if text and name not in ("step", "tokens")
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join("the people want peace and work " * (5 + n % 3) + str(n) for n in range(60)))
    return path


@pytest.fixture(scope="module")
def plain(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with("csv", text, tmp_path_factory.mktemp("plain"))


def run_with(logger: str, text: Path, folder: Path, kill_when: Path | None = None) -> Path:
    settings = [*TINY, f"source.path={text}", f"logger={logger}", f"out={folder / 'runs'}", "name=one"]
    done = ablatio(["train", *settings], folder / "output", kill_when=kill_when)
    assert done.code == (-signal.SIGKILL if kill_when else 0), done.err
    return folder / "runs" / "one"


def run_name(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text())["run"])


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "mlflow" else []) for n in READERS])
def test_resumed_run_is_logged_completely(name: str, tmp_path: Path, text: Path, plain: Path) -> None:
    kill_when = tmp_path / "runs/one/checkpoints/step-00000008.json"
    run = run_with(f"[csv,{name}]", text, tmp_path, kill_when)
    done = ablatio(["train", f"resume={run}"], tmp_path / "output")
    assert done.code == 0 and not done.err and "left out" not in done.out, done.err
    assert metrics(run) == metrics(plain) and run_name(run) == run_name(plain)  # logging changes no result
    expected, found = read_metrics_csv(run), READERS[name](run)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def _log_alone(name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = kinds.loggers.build(name, {}, folder=folder, config={"model": {"d_model": 16}})
        logger.start([])
        for step in range(1, 40):
            logger.log({"step": step, "tokens": step, "train/loss": 1 / step})
        logger.finish("done")
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_concurrent_runs_share_a_database(name: str, tmp_path: Path) -> None:
    kinds.loggers.target(name)
    folders = [tmp_path / f"run{i}" for i in range(3)]
    workers = [mp.get_context("fork").Process(target=_log_alone, args=(name, folder)) for folder in folders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    for folder in folders:
        assert READERS[name](folder) == {("train/loss", s): pytest.approx(1 / s) for s in range(1, 40)}


def test_metrics_csv_is_always_written(tmp_path: Path, text: Path, plain: Path) -> None:
    assert metrics(run_with("tensorboard", text, tmp_path)) == metrics(plain)


def test_missing_logger_library_is_reported_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    kinds.loggers.target("wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ablatio\[wandb\]'"):
        kinds.loggers.build("wandb", {}, folder=tmp_path, config={})


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "postgresql://db"])
def test_mlflow_accepts_sqlite_and_servers(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sqlite:///PATH or http\(s\)://HOST was expected"):
        kinds.loggers.build("mlflow", {"uri": uri}, folder=tmp_path, config={})


def test_failing_logger_is_dropped_and_the_run_continues(tmp_path: Path) -> None:
    from rich.console import Console

    from ablatio.training.loggers import Logs
    from ablatio.training.metrics_csv import MetricsFile

    class Broken:
        def start(self, rows: object) -> None: ...
        def finish(self, status: str) -> None: ...
        def log(self, row: object) -> None:
            raise sqlite3.OperationalError("disk [full]")

    console = Console(record=True, width=200)
    logs = Logs(MetricsFile(tmp_path / "metrics.csv"), {"broken": Broken()}, console)
    logs.start()
    logs.write({"step": 1, "tokens": 8, "train/loss": math.pi})
    logs.write({"step": 2, "tokens": 16, "train/loss": math.nan})
    logs.finish("done")
    assert [r["step"] for r in logs.file.read()] == ["1", "2"]
    text = console.export_text()
    assert text.count("logger=broken failed and is left out") == 1 and "disk [full]" in text


def test_loggers_get_rounded_rows_replayed_rows_and_status(tmp_path: Path) -> None:
    """Loggers get the values as metrics.csv rounds them, the earlier rows at a restart, and the final status."""
    from rich.console import Console

    from ablatio.training.loggers import Logs
    from ablatio.training.metrics_csv import MetricsFile

    seen: list[object] = []

    class Kept:
        def start(self, rows: object) -> None:
            seen.append(rows)

        def log(self, row: object) -> None:
            seen.append(row)

        def finish(self, status: str) -> None:
            seen.append(status)

    logs = Logs(MetricsFile(tmp_path / "metrics.csv"), {"kept": Kept()}, Console())
    logs.start()
    logs.write({"step": 2, "tokens": 8, "train/loss": 1 / 3, "unknown": 1.0})
    logs.start(2)
    logs.start(1)
    logs.finish("preempted")
    row = {"step": 2, "tokens": 8, "train/loss": 0.333333333}
    assert seen == [[], row, [row], [], "preempted"]


def test_run_without_mlflow_creates_no_database(plain: Path) -> None:
    assert summary(plain)["status"] == "done" and not (plain.parent / "mlflow.db").exists()


def test_metric_of_two_parts_has_one_column(tmp_path: Path) -> None:
    """The policy task and its alignment both log clip_fraction; the columns after it must not shift."""
    file = MetricsFile(
        tmp_path / "metrics.csv", ["train/clip_fraction", "train/ratio", "train/clip_fraction", "train/kl"]
    )
    file.start()
    file.write({"step": 3, "train/clip_fraction": 0.5, "train/ratio": 1.25, "train/kl": 0.01})
    (row,) = file.read()
    row_values = {name: row[name] for name in ("step", "train/clip_fraction", "train/ratio", "train/kl")}
    assert row_values == {"step": "3", "train/clip_fraction": "0.5", "train/ratio": "1.25", "train/kl": "0.01"}
    assert len(row) == len(set(file.columns)) == len(file.columns)
