"""Servers of pools that studies of this process start, each a fork of a server that has imported Lightning already."""

import io
import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import pytest
from helpers import warm_python
from helpers.threads import one_thread_in_fork


class WarmSpawn:
    """What the pool asks of the context `spawn`: a process with the environment, folder and streams of this one."""

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(*, target: Callable[..., None], args: Sequence[Any], name: str) -> Any:  # noqa: N802 (its name there)
        return warm_python.server().Process(target=_begin, args=(Handed((target, args)),), name=name)


class Handed:
    """Objects for a child, which unpickles them when it stands where they are to be used."""

    def __init__(self, things: object) -> None:
        self.things = things

    def __getstate__(self) -> tuple[object, ...]:
        """What the child needs; pickled while its process starts, so connections and streams can go with it."""
        packed = io.BytesIO()
        reduction.dump(self.things, packed)
        streams = [reduction.DupFd(number) for number in (1, 2)]
        return packed.getvalue(), streams, dict(os.environ), str(Path.cwd())

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.packed, self.streams, self.environment, self.folder = state

    def unpack(self) -> Any:
        for number, stream in enumerate(self.streams, 1):
            os.dup2(stream.detach(), number)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        one_thread_in_fork()
        return pickle.loads(self.packed)


def _begin(handed: Handed) -> None:
    target, args = handed.unpack()
    target(*args)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pools of this process start their servers in this way, where they would spawn them, until the test ends."""
    from ablatio_std.launchers import pool

    class Contexts:
        Process = multiprocessing.Process

        @staticmethod
        def get_context(method: str) -> Any:
            return WarmSpawn if method == "spawn" else multiprocessing.get_context(method)

    monkeypatch.setattr(pool, "multiprocessing", Contexts)
