"""Runs on this machine."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Annotated

from ablatio import Positive, launchers
from ablatio.errors import EnvironmentFault
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._gpus import gpus
from ablatio_std.launchers._server import GRACE, serve

Seconds = Annotated[float | None, Positive, "after which a run is stopped and counts as failed"]
Threads = Annotated[int, Positive, "of torch in each run that does not set trainer.threads"]


@launchers.register("pool")
class Pool:
    """One process per run, forked from a server that has done the heavy imports once.

    Where there are GPUs, a run has one, which others may share.  A run that crashes, leaks, hangs or exits is alone in
    that.  A server that dies takes its runs along, each with a checkpoint, and a new one is started.

    Source: prefork servers, as Apache httpd and multiprocessing's forkserver have them
    """

    def __init__(
        self,
        work: Work,
        *,
        workers: Annotated[int | None, Positive, "runs at a time; by default one per core"] = None,
        threads: Threads = 1,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.threads, self.timeout = work, threads, timeout
        self.slots = workers or max(1, _cores() // threads)
        self.orders: dict[str, LaunchRequest] = {}
        self.deaths = 0

    def start(self) -> None:
        method = "fork" if _may_fork() else "spawn"
        context = multiprocessing.get_context(method)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.pipe if method == "fork" else None, self.work, self.threads, self.timeout)
        self.server = context.Process(target=serve, args=arguments, name="ablatio-server")  # type: ignore[attr-defined]
        with _without_main():
            self.server.start()
        theirs.close()

    def submit(self, order: LaunchRequest) -> None:
        self.orders[order.job] = order
        self._say(order)

    def cancel(self, job: str) -> None:
        self._say(job)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        ends: list[LaunchOutcome] = []
        while wait([self.pipe], seconds):
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):
                return ends + self._revive()
            self.deaths, seconds = 0, 0.0  # it is well: its imports are done, or a run has ended
            if isinstance(said, LaunchOutcome):
                del self.orders[said.order.job]
                ends.append(said)
        return ends

    def stop(self) -> None:
        self._say(None)
        if self.orders:
            self.server.join(GRACE + 5)
        if self.server.is_alive():
            self.server.kill()
            self.server.join()
        self.pipe.close()

    def _revive(self) -> list[LaunchOutcome]:
        """A new server; what the old one was doing is lost."""
        self.pipe.close()
        self.server.join()
        self.deaths += 1
        if self.deaths > 3:
            raise EnvironmentFault(
                f"the server of the pool has died {self.deaths} times in a row, the last time with code "
                f"{self.server.exitcode}\n    try: ablatio doctor"
            )
        lost = [LaunchOutcome(order, "lost") for order in self.orders.values()]
        self.orders.clear()
        self.start()
        return lost

    def _say(self, said: LaunchRequest | str | None) -> None:
        try:
            self.pipe.send(said)
        except OSError:  # the server is dead: the next poll finds that out, and gives back what it was to do
            return


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program that runs: a spawned process imports it once more, and a script would begin its study anew.

    The server needs nothing of it: `work` stands in a module.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _may_fork() -> bool:
    """Whether this process can be copied: a library's threads or a GPU's context would be missing in the copy.

    Where there are GPUs, torch's first backward pass starts a thread for each, and no child can do one after that: the
    table before the first run has timed a step.
    """
    torch = sys.modules.get("torch")
    busy = torch is not None and (torch.get_num_threads() > 1 or gpus())
    return sys.platform == "linux" and threading.active_count() == 1 and _os_threads() == 1 and not busy


def _os_threads() -> int:
    """Threads that Python may not know of: a training in this process leaves OpenMP's, and a fork loses them."""
    return len(list(Path("/proc/self/task").iterdir()))
