"""Settings of the loggers reach the tools: read back from W&B's file, TensorBoard's folder, and an MLflow server."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ablatio.cli.main import main
from ablatio.errors import UserError
from ablatio.registry import kinds

ROWS = [{"step": 1.0, "train/loss": 3.0}, {"step": 2.0, "train/loss": 2.5}]


def log(name: str, folder: Path, rows: list[dict[str, float]] = ROWS, **knobs: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    logger = kinds.loggers.build(name, kinds.loggers[name].defaults | knobs, folder=folder, config={"seed": 1})
    logger.start([])
    for row in rows:
        logger.log(row)
    logger.finish("done")
    return logger


def run_record(path: Path) -> Any:
    """The record of an offline run with its settings; None if the file has none yet."""
    from wandb.proto import wandb_internal_pb2

    data, at, pieces = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pieces += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record, pieces = wandb_internal_pb2.Record.FromString(pieces), b""
            if record.HasField("run"):
                return record.run
    return None


@pytest.mark.slow
def test_wandb_settings_are_in_the_offline_run(tmp_path: Path) -> None:
    knobs = {"project": "norms", "entity": "lab", "group": "first", "run_name": "try 1", "tags": ("a", "b")}
    log("wandb", tmp_path / "runs" / "one", notes="why", **knobs)
    (path,) = (tmp_path / "runs" / "one").glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # W&B's own process writes the file
    while (run := run_record(path)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run is not None
    assert (run.project, run.entity, run.run_group, run.display_name) == ("norms", "lab", "first", "try 1")
    assert [*run.tags] == ["a", "b"] and run.notes == "why"


def test_wandb_online_asks_for_no_key_but_says_that_it_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key it is refused before anything is sent; a key is found where W&B looks for it."""
    from ablatio_std.loggers.wandb import has_key

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="wandb login"):
        log("wandb", tmp_path / "run", mode="online")
    (tmp_path / "netrc").write_text("machine wandb.example login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert has_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


class OnlineRun:
    """What W&B hands out for an online run that it has rows of."""

    starting_step = 2

    def __init__(self) -> None:
        self.rows: list[int] = []

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append(step)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


def test_wandb_online_run_is_continued_after_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    asked: list[Any] = []
    run = OnlineRun()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", lambda settings, config: asked.append(settings) or run)
    log("wandb", tmp_path / "run", mode="online", entity="lab")
    log("wandb", tmp_path / "run", mode="online", entity="lab")
    first, second = asked
    assert first.mode == "online" and first.resume == "allow" and first.entity == "lab"
    assert first.run_id == second.run_id and run.rows == [2, 2] and run.code == 0


def test_tensorboard_folder_of_all_runs(tmp_path: Path) -> None:
    """Two runs of two sweeps with one name do not share a folder, and only that of the run is emptied."""
    place = tmp_path / "tb"
    (place / "kept").mkdir(parents=True)
    for sweep in ("a", "b", "a"):
        logger = log("tensorboard", tmp_path / sweep / "one", log_dir=str(place), flush_secs=7)
    assert logger.flush_secs == 7 and (place / "kept").exists()
    assert [len([*(place / sweep / "one").iterdir()]) for sweep in "ab"] == [1, 1]
    assert not (tmp_path / "a" / "one" / "tensorboard").exists()


@contextmanager
def mlflow_server() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """MLflow's REST interface as far as a logger uses it; yields its address and what was asked of it."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = self.path.partition("/mlflow/")[2]
            asked.append((name, body))
            run = {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING"}, "data": {}}
            self._answer(200, {"experiments/create": {"experiment_id": "7"}, "runs/create": {"run": run},
                               "runs/update": {"run_info": run["info"]}}.get(name, {}))  # fmt: skip

        def _answer(self, code: int, data: dict[str, Any]) -> None:
            text = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_mlflow_server_gets_the_run_with_its_name_and_tags(tmp_path: Path) -> None:
    with mlflow_server() as (uri, asked):
        knobs = {"experiment": "norms", "run_name": "try 1", "tags": ("team:lab", "note:a:b")}
        log("mlflow", tmp_path / "run", uri=uri, **knobs)
    told = dict(asked)
    assert told["experiments/create"]["name"] == "norms" and "artifact_location" not in told["experiments/create"]
    assert told["runs/create"]["run_name"] == "try 1"
    tags = {tag["key"]: tag["value"] for tag in told["runs/create"]["tags"]}
    assert tags["team"] == "lab" and tags["note"] == "a:b"
    points = [
        (m["key"], m["step"], m["value"]) for n, b in asked if n == "runs/log-batch" for m in b.get("metrics", ())
    ]
    assert points == [("train/loss", 1, 3.0), ("train/loss", 2, 2.5)] and told["runs/update"]["status"] == "FINISHED"
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("many", [False, True])
def test_several_loggers_are_a_list(
    many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """logger=a,b is one run with two loggers, never two arms that are equal."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *(["-m"] if many else []), "logger=csv,tensorboard", "size=tiny"]) == 2
    assert "try: logger=[csv,tensorboard]" in capsys.readouterr().err and not [*tmp_path.iterdir()]
