"""Launcher for this machine: a pool of forked processes."""

import multiprocessing
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Annotated

from ablatio import Positive, launchers
from ablatio.data.workers import available_cores
from ablatio.errors import EnvironmentFault
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._gpus import gpus
from ablatio_std.launchers._server import GRACE, serve

Seconds = Annotated[float | None, Positive, "seconds after which a run is stopped and counts as failed; null: no limit"]
Threads = Annotated[int, Positive, "threads of torch in each run that does not set trainer.threads"]


@launchers.register("pool")
class Pool:
    """One process per run, forked from a server that has done the heavy imports once.

    On a machine with GPUs each run uses one, which runs may share, or several (`trainer.devices`), which are its own.
    A run that crashes, leaks memory, hangs or exits does not affect the others.  If the server dies, its runs save a
    checkpoint and stop, and a new server is started.

    Source: prefork servers, as in Apache httpd and multiprocessing's forkserver
    """

    replaces = ("basic", "joblib")

    def __init__(
        self,
        work: Work,
        *,
        workers: Annotated[int | None, Positive, "devices in use at a time; null: number of cores / threads"] = None,
        threads: Threads = 1,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.threads, self.timeout = work, threads, timeout
        self.slots = workers or max(1, available_cores() // threads)
        self.orders: dict[str, LaunchRequest] = {}
        self.deaths = 0

    def start(self) -> None:
        method = "fork" if _may_fork() else "spawn"
        context = multiprocessing.get_context(method)
        self.pipe, theirs = context.Pipe()
        copied = self.pipe if method == "fork" else None
        arguments = (theirs, copied, self.work, self.threads, self.timeout, self.slots, GRACE)
        self.server = context.Process(target=serve, args=arguments, name="ablatio-server")  # type: ignore[attr-defined]
        with _without_main():
            self.server.start()
        theirs.close()

    def submit(self, order: LaunchRequest) -> None:
        self.orders[order.job] = order
        self._send(order)

    def cancel(self, job: str) -> None:
        self._send(job)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        ends: list[LaunchOutcome] = []
        while wait([self.pipe], seconds):
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                return ends + self._restart()
            self.deaths, seconds = 0, 0.0  # the server works: it has done its imports, or a run has ended
            if isinstance(message, LaunchOutcome):
                del self.orders[message.order.job]
                ends.append(message)
        return ends

    def stop(self) -> None:
        self._send(None)
        if self.orders:
            self.server.join(GRACE + 5)
        if self.server.is_alive():
            self.server.kill()
            self.server.join()
        self.pipe.close()

    def _restart(self) -> list[LaunchOutcome]:
        """Start a new server, and return the runs of the dead one as lost."""
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

    def _send(self, message: LaunchRequest | str | None) -> None:
        try:
            self.pipe.send(message)
        except OSError:  # the server is dead: the next poll() notices it and returns its runs as lost
            return


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
    """True if this process can be forked: threads of libraries and a GPU's context would be missing in the child.

    With GPUs torch's first backward pass starts a thread for each of them, and a process forked after that cannot do a
    backward pass.  The table that is shown before the first run has timed a step, which does one.
    """
    torch = sys.modules.get("torch")
    busy = torch is not None and (torch.get_num_threads() > 1 or gpus())
    return sys.platform == "linux" and threading.active_count() == 1 and _os_threads() == 1 and not busy


def _os_threads() -> int:
    """Threads that Python may not know of: a training in this process leaves OpenMP's, and a fork loses them."""
    return len(list(Path("/proc/self/task").iterdir()))
