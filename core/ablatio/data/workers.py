"""Compute a function of each item in forked processes, in order, with one item in flight per process.

Forked, where ablatio.data.parallel spawns: the function is `encode` of a tokenizer, which turns text into ids without
torch, so the copy waits for no lock of torch's threads.  A fork needs neither an importable function (a tokenizer of a
notebook) nor a `__main__` that can be imported again (tokenizing starts processes unasked, in scripts without a guard,
too), and torch is not imported again.  The methods that `parallel` maps may do anything, as a filter with a model does,
and their processes are asked for.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from ablatio.errors import EnvironmentFault

A = TypeVar("A")
B = TypeVar("B")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Yield function(item) for each item, in the order of the items.

    The workers are forked, so `function` need not be importable; items and results are sent through pipes. They end
    with this process, however it ends. At most one item per worker is read ahead, which bounds the memory. An exception
    of `function` is raised here; EnvironmentFault if a worker dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = _start(function, workers)
    idle, busy = deque(pool), deque[_Worker]()
    try:
        for item in items:
            if not idle:
                idle.append(busy.popleft())
                yield idle[-1].result()
            # Only a worker that has given its result back gets an item: with both pipes full, both ends would wait.
            idle[0].connection.send(item)
            busy.append(idle.popleft())
        while busy:
            yield busy.popleft().result()
    except (BrokenPipeError, ConnectionResetError):
        raise _died(pool) from None
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid, self.connection, self.status = pid, connection, 0

    def result(self) -> Any:
        try:
            failed, value = self.connection.recv()
        except (EOFError, OSError):
            self.end()
            raise _died([self]) from None
        if failed:
            raise value
        return value

    def end(self) -> None:
        if self.pid:
            self.connection.close()
            _, self.status = os.waitpid(self.pid, 0)
            self.pid = 0


def _died(pool: Iterable[_Worker]) -> EnvironmentFault:
    for worker in pool:
        worker.end()
    killed = next((w.status for w in pool if os.WIFSIGNALED(w.status)), 0)
    why = f"signal {os.WTERMSIG(killed)}; signal 9 is often a lack of memory" if killed else "it ended"
    return EnvironmentFault(
        f"a process that tokenizes has died ({why})\n"
        "    try: the same command again, which goes on where it stopped, with trainer.data_workers=1"
    )


def _start(function: Callable[[Any], Any], workers: int) -> list[_Worker]:
    sys.stdout.flush()
    sys.stderr.flush()
    pool: list[_Worker] = []
    for _ in range(workers):
        here, there = Pipe()
        pid = os.fork()
        if not pid:
            here.close()
            for other in pool:  # or their pipes would stay open when the parent has died
                other.connection.close()
            _serve(function, there)
        there.close()
        pool.append(_Worker(pid, here))
    return pool


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Answer items until the parent closes the connection or dies; does not return."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and closes the connection
        # Handlers of the parent would save a checkpoint or write its ledger from here.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process
        while True:
            item = connection.recv()
            try:
                answer = (False, function(item))
            except Exception as error:
                answer = (True, error)
            connection.send(answer)
    except (EOFError, OSError):
        os._exit(0)
    finally:
        # Not `sys.exit`: the parent's `finally` blocks and exit functions must not run in its copy.
        os._exit(1)
