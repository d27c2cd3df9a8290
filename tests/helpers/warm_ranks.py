"""Ranks that a run of this process starts, each a fork of a server that has imported torch and Lightning already."""

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
