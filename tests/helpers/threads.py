"""One thread for all computations of the test processes and of those they fork.

Their tensors are tiny, and there are more of these processes than cores: of two threads one would wait for a core, and
the other for it, in a loop that uses the core.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_own: dict[str, Any] = {}  # torch's functions, by name
_asked = [1]


def one_thread() -> None:
    """Let torch compute with one thread, and say that it uses as many as it was told; nothing before it is imported."""
    if torch := _torch():
        torch.set_num_threads, torch.get_num_threads = _ask, lambda: _asked[0]
        _ask(1)


def one_thread_in_fork() -> None:
    """Let torch compute with one thread, and say so, whatever it is told.

    If the process before the fork has computed with two, the second is missing here, and a run would wait for it.
    """
    if torch := _torch():
        torch.set_num_threads, torch.get_num_threads = lambda number: _own["set"](1), _own["get"]
        torch.set_num_threads(1)


@contextmanager
def as_told() -> Iterator[None]:
    """Context in which torch computes with the number of threads that it is told."""
    if torch := _torch():
        torch.set_num_threads, torch.get_num_threads = _own["set"], _own["get"]
    try:
        yield
    finally:
        one_thread()


def _torch() -> Any:
    """The module, if it is imported, after its functions were kept."""
    torch = sys.modules.get("torch")
    if torch and not _own:
        _own.update(set=torch.set_num_threads, get=torch.get_num_threads)
    return torch


def _ask(number: int) -> None:
    _own["set"](1)
    _asked[0] = number
