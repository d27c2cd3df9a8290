"""`report --follow` beside a real sweep: it waits, shows each state, and ends with the runs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, begin

from ablatio.report import follow

pytestmark = pytest.mark.slow
RELOADS = "location.reload"  # of a page whose file will be written again


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.02)
    monkeypatch.setattr("ablatio.report.watch.LEAST_SECONDS", 0.5)


@contextmanager
def running(arguments: list[str], folder: Path) -> Iterator[BaseProcess]:
    process = begin(arguments, folder)
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join(20)


def until(ready: Callable[[], bool], process: BaseProcess, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


def sweep(out: Path, text: Path, steps: int) -> list[str]:
    return ["train", "-m", *TINY, f"source.path={text}", f"out={out}", "name=s", "norm=rmsnorm,layernorm", "seed=1",
            "workers=1", "table=0", f"train.steps={steps}"]  # fmt: skip


def text_in(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_following_waits_for_a_sweep_shows_it_and_ends_with_it(tmp_path: Path, text_file: Path) -> None:
    study, out = tmp_path / "s", tmp_path / "follow/out"
    page = study / "report/report.html"
    with running(["report", str(study), "--follow"], tmp_path / "follow") as follower:
        until(lambda: "waiting for runs in" in text_in(out), follower)
        with running(sweep(tmp_path, text_file, 4), tmp_path / "sweep") as runs:
            until(lambda: RELOADS in text_in(page), runs)
            runs.join(120)
            assert runs.exitcode == 0, text_in(tmp_path / "sweep/err")
        follower.join(60)
        assert follower.exitcode == 0, text_in(tmp_path / "follow/err")
    said = out.read_text()
    states = [line for line in said.splitlines() if "runs done" in line]
    assert len(states) > 1 and "(Ctrl-C ends this, not the runs)" in states[0]
    assert [line for line in states if line.startswith("ended")] == ["ended: 2 of 2 runs done"] == states[-1:]
    assert len(states) == len({line.split(": ", 1)[1] for line in states})  # a log has each state once
    assert RELOADS not in page.read_text()
    written = {name: (study / "report" / name).read_bytes() for name in ("results.csv", "report.md", "arms.tex")}
    assert ablatio(["report", str(study), "--quiet"], tmp_path / "log").code == 0
    assert written == {name: (study / "report" / name).read_bytes() for name in written}


def test_ctrl_c_ends_the_following_alone_and_a_stopped_sweep_is_told(tmp_path: Path, text_file: Path) -> None:
    study = tmp_path / "s"
    with running(sweep(tmp_path, text_file, 4000), tmp_path / "sweep") as runs:
        until((study / "study.json").exists, runs)
        first = ["report", str(study), "--follow", "--quiet", "--out", str(tmp_path / "first")]
        second = ["report", str(study), "--follow"]
        with running(first, tmp_path / "a") as one, running(second, tmp_path / "b") as other:
            page = tmp_path / "first/report.html"
            until(page.exists, one)
            seen = page.stat().st_mtime_ns
            until(lambda: page.stat().st_mtime_ns != seen, one)
            os.kill(one.pid or 0, signal.SIGINT)
            one.join(30)
            assert one.exitcode == 0 and runs.is_alive()
            assert text_in(tmp_path / "a/out").split()[:1] == ["written:"]  # quiet: no answer
            until(lambda: "runs done" in text_in(tmp_path / "b/out"), other)
            os.kill(runs.pid or 0, signal.SIGINT)
            other.join(60)
            assert other.exitcode == 1
    said = text_in(tmp_path / "b/out")
    assert "stopped before the end: 0 of 2 runs done" in said and f"try: ablatio resume {study}" in said
