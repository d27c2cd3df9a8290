"""A single run under signals of batch systems and terminals, and with standard streams that cannot be written."""

import io
import json
import multiprocessing as mp
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.storage.streams import SafeStream

STOPS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def broken() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


STREAMS: dict[str, Callable[[], int] | None] = {"closed": None, "full": full, "broken": broken}


def _child(arguments: Sequence[str], log: str, which: int, stream: str, ignored: int) -> None:
    """`ablatio ARGUMENTS` with real file descriptors, of which one is closed, full, broken or knows ASCII only."""
    from ablatio.cli.main import main

    for number, name in ((1, "out"), (2, "err")):
        file = os.open(Path(log, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    make = STREAMS.get(stream)
    if make:
        os.dup2(make(), which)
    if stream == "closed":
        os.close(which)
    encoding = "ascii" if stream == "ascii" else "utf-8"
    for number, name in ((1, "stdout"), (2, "stderr")):
        lacking = stream == "closed" and number == which
        setattr(sys, name, None if lacking else io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding))
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    code = main(list(arguments))
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()  # as Python does at its end
    os._exit(code)


def run(
    arguments: Sequence[str], log: Path, which: int = 1, stream: str = "", ignored: int = 0
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    import torch

    import ablatio.training.run  # noqa: F401  (imported once, before the fork)

    torch.set_num_threads(1)
    log.mkdir(parents=True, exist_ok=True)
    process = mp.get_context("fork").Process(target=_child, args=(arguments, str(log), which, stream, ignored))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, *((log / name).read_text() for name in ("out", "err"))


@pytest.fixture
def settings(tmp_path: Path, text_file: Path) -> list[str]:
    return ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}"]


@pytest.mark.matrix(share=2)
@pytest.mark.parametrize("number", STOPS)
def test_each_stop_signal_saves_a_checkpoint_and_exits_with_75(
    settings: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    steps = 1000 if number == signal.SIGUSR1 else 20_000  # the signal comes in time on a busy machine, too
    settings += [f"train.steps={steps}", "train.val_every=null", "train.checkpoint_every=20"]
    cut = tmp_path / "cut"
    stopped = ablatio([*settings, "name=cut"], tmp_path / "log", cut / "checkpoints/step-00000020.json", number)
    assert stopped.code == 75 and f"{number.name} came at step" in stopped.err, stopped.err
    assert summary(cut)["status"] == "preempted" and 20 <= int(str(summary(cut)["steps"])) < steps
    if number == signal.SIGUSR1:  # resuming is the same for all
        assert ablatio(["train", f"resume={cut}"], tmp_path / "log").code == 0
        assert summary(cut)["status"] == "done"


def test_a_signal_that_the_caller_ignores_stays_ignored(settings: list[str], tmp_path: Path) -> None:
    """`nohup ablatio train`: the loss of the terminal must not stop the run."""
    import threading

    def hang_up() -> None:
        mark = tmp_path / "a/checkpoints/step-00000004.json"
        while not mark.exists():
            pass
        for child in mp.active_children():
            os.kill(child.pid or 0, signal.SIGHUP)

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    code, _, err = run([*settings, "train.steps=200", "name=a"], tmp_path / "log", ignored=signal.SIGHUP)
    thread.join()
    assert code == 0 and summary(tmp_path / "a")["steps"] == 200, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_before_the_first_step_says_so_and_the_same_command_works(
    settings: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    stopped = ablatio([*settings, "name=a"], tmp_path / "log", tmp_path / "a/run.lock", number)
    assert stopped.code == 75, stopped
    assert f"{number.name} came before the first step; nothing is lost" in stopped.err
    assert ablatio([*settings, "name=a"], tmp_path / "log").code == 0


@pytest.mark.parametrize("stream", [*STREAMS, "ascii"])
def test_a_run_survives_what_happens_to_stdout(settings: list[str], tmp_path: Path, stream: str) -> None:
    settings += ["trainer.progress=true", "name=a"]
    code, out, err = run(settings, tmp_path / "log", 1, stream)
    assert code == 0, err
    assert summary(tmp_path / "a")["status"] == "done"
    if stream == "full":
        assert "could not be written to stdout: No space left on device (ENOSPC)" in err
    if stream == "ascii":
        assert out.isascii() and str(tmp_path / "a") in out.replace("\n", "")


@pytest.mark.parametrize("stream", [*STREAMS, "ascii"])
@pytest.mark.parametrize("which", [1, 2])
def test_an_error_is_never_hidden_by_a_stream(settings: list[str], tmp_path: Path, which: int, stream: str) -> None:
    code, _, err = run([*settings, "norm=été\ud800"], tmp_path / "log", which, stream)
    assert code == 2
    if which == 1 or stream == "ascii":
        assert "This config cannot run" in err and "Traceback" not in err
    code, out, err = run(["list", "norm"], tmp_path / "log", which, stream)
    assert code == (5 if which == 1 and stream == "full" else 0), err
    assert which == 1 or "rmsnorm" in out


def test_files_never_get_the_number_of_a_closed_stream(settings: list[str], tmp_path: Path) -> None:
    """A file opened as number 1 would get everything that is printed."""
    code, _, err = run([*settings, "name=a"], tmp_path / "log", 1, "closed")
    assert code == 0, err
    for name in ("config.json", "manifest.json", "summary.json"):
        assert json.loads((tmp_path / "a" / name).read_text())


def test_a_safe_stream_is_a_stream() -> None:
    file = io.StringIO()
    stream = SafeStream(file)
    print("some text", file=stream)
    stream.writelines(["a", "b"])
    assert file.getvalue() == "some text\nab" and stream.error is None and not stream.isatty()
    file.close()
    print("more", file=stream)
    assert isinstance(stream.error, ValueError)
