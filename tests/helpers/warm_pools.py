"""Servers of pools that studies of this process start, each a fork of a server that has imported Lightning already.

Importing the fixture into a conftest or a file of tests is using it.
"""

import io
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import reduction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import warm_python
from helpers.threads import one_thread_in_fork

_PID = os.getpid()


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


@pytest.fixture(autouse=True, scope="module")
def warm_pools() -> Iterator[None]:
    """Pools of this process start their servers in this way, where they would spawn them."""
    from ablatio_std.launchers import pool

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "multiprocessing", SimpleNamespace(get_context=_context))
        yield


def _context(method: str) -> Any:
    # A fork of this process may not ask the warm server, which is no child of it.
    warm = method == "spawn" and os.getpid() == _PID
    return WarmSpawn if warm else multiprocessing.get_context(method)
