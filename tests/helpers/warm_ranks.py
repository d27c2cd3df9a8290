"""Ranks that have imported torch and Lightning already, which takes seconds.

Those that a run of a test process starts are forks of a server; those of a run in a fork of it are forks of the run.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest
from helpers import warm_python

from ablatio.storage.process import stop_signals
from ablatio.training import gang


class WarmRank:
    """What the supervisor asks of a subprocess.Popen: `command` in another process, with a pipe as its stdin."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: TextIO | None, **_: object) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        os.mkfifo(folder / "in")
        # For reading, too: else opening it would wait for the rank.
        self.stdin = os.fdopen(os.open(folder / "in", os.O_RDWR), "w", encoding="utf-8")
        if stdout is not None:
            for name in ("out", "err"):
                (folder / name).symlink_to(stdout.name)
        place = (dict(env), str(Path.cwd()), str(folder), warm_python.path_of_python())
        self._process = warm_python.server().Process(target=warm_python.become, args=(list(command[1:]), *place))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        self._folder.cleanup()
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process start their ranks in this way until the test ends."""
    monkeypatch.setattr(gang, "subprocess", SimpleNamespace(Popen=WarmRank, PIPE=subprocess.PIPE))


class ForkedRank:
    """As `WarmRank`, but a fork of this process, which may not ask the server."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: TextIO | None, **_: object) -> None:
        theirs, ours = os.pipe()
        self.returncode: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            os.dup2(theirs, 0)
            for number in (1, 2) if stdout else ():
                os.dup2(stdout.fileno(), number)
            os.close(theirs)
            os.close(ours)  # else its standard input would not end with the supervisor
            for stop in stop_signals():
                signal.signal(stop, signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL)
            place = (dict(env), str(Path.cwd()), "", warm_python.path_of_python())
            warm_python.become(list(command[1:]), *place, warm_python.of_others())
        os.close(theirs)
        self.stdin = os.fdopen(ours, "w", encoding="utf-8")

    def poll(self) -> int | None:
        return self._look(os.WNOHANG)

    def wait(self) -> int | None:
        return self._look(0)

    def _look(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self._pid, number)


def fork() -> None:
    """Let the run of this process start its ranks as forks of itself."""
    gang.subprocess = SimpleNamespace(Popen=ForkedRank, PIPE=subprocess.PIPE)  # type: ignore[assignment]
