"""The server of a pool: a process that has done the heavy imports once and forks one process per run.

Nothing but imports happens in here: no CUDA, no threads, no training.  A run is a process group of its own, so whatever
it leaves behind is ended with it, and it sees one GPU, that which the fewest runs have.  When the sweeper is gone, the
runs are asked to stop with a checkpoint; when the server is gone, the kernel asks them.
"""

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._gpus import gpus, least_used

GRACE = 20.0  # seconds from the request to stop until it is no longer a request
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """deadline: when it will be asked to stop, and once it is `asked`, when it will be made to."""

    order: LaunchRequest
    deadline: float
    gpu: str
    asked: bool = False
    late: bool = False


class Server:
    """Obeys `pipe`: an Order is run, a job's id is asked to stop, None asks all of them and ends the server."""

    def __init__(self, pipe: Connection, work: Work, threads: int, timeout: float | None) -> None:
        self.pipe, self.work, self.threads = pipe, work, threads
        self.timeout = timeout or float("inf")
        self.children: dict[int, Child] = {}
        self.gpus: list[str] = []
        self.stopping = False
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self.woken, self.wake = os.pipe()

    def serve(self) -> None:
        os.setsid()  # Ctrl-C is the sweeper's business
        self._signals()
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is there a GPU?  asked without starting CUDA
        gc.disable()  # what the imports make stays
        self.work.warm()
        self.gpus = gpus()
        gc.freeze()  # it is shared with the runs, as long as nobody writes into it
        self._say(None)
        while not self.stopping or self.children:
            ready = wait([self.pipe, self.woken], self._patience())
            if self.woken in ready:
                os.read(self.woken, 4096)
            if self.pipe in ready:
                self._obey()
            self._reap()
            self._enforce()

    def _signals(self) -> None:
        os.set_blocking(self.wake, False)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())

    def _obey(self) -> None:
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):  # the sweeper is gone
            said = None
        if isinstance(said, LaunchRequest):
            self._fork(said)
        elif said is None:
            self._stop()
        else:
            for pid, child in self.children.items():
                if child.order.job == said:
                    self._ask(pid, child)

    def _stop(self) -> None:
        self.stopping = True
        for pid, child in self.children.items():
            self._ask(pid, child)

    def _ask(self, pid: int, child: Child) -> None:
        if not child.asked:
            child.asked, child.deadline = True, time.monotonic() + GRACE
            os.kill(pid, signal.SIGTERM)  # it is not reaped yet, so the pid is still its own

    def _fork(self, order: LaunchRequest) -> None:
        server, gpu = os.getpid(), least_used(self.gpus, (child.gpu for child in self.children.values()))
        signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGTERM]
        )  # a run that is asked at once must not hear as server
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            self.children[pid] = Child(order, time.monotonic() + self.timeout, gpu)
            return
        code = 1
        try:
            self._become_a_run(server, gpu)
            code = self.work(order, self.threads)
        except BaseException:  # nothing that a run raises may reach the loop of the server
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def _become_a_run(self, server: int, gpu: str) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        self.pipe.close()
        os.close(self.woken)
        os.close(self.wake)
        gc.enable()
        if self.libc is not None:
            self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != server:  # it went in the meantime
            os._exit(75)
        if gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def _reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            with suppress(ProcessLookupError, PermissionError):  # what the run has started and left
                os.killpg(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            how = "timeout" if child.late else "signal" if code < 0 else "exit"
            self._say(LaunchOutcome(child.order, how, abs(code)))  # type: ignore[arg-type]

    def _enforce(self) -> None:
        now = time.monotonic()
        for pid, child in self.children.items():
            if now < child.deadline:
                continue
            if child.asked:
                os.killpg(pid, signal.SIGKILL)
            else:
                child.late = True
                self._ask(pid, child)

    def _patience(self) -> float | None:
        first = min((c.deadline for c in self.children.values()), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _say(self, said: LaunchOutcome | None) -> None:
        with suppress(OSError):  # the sweeper is gone; the next reading says so
            self.pipe.send(said)


def serve(pipe: Connection, other_end: Connection | None, work: Work, threads: int, timeout: float | None) -> None:
    """The main function of the server's process; other_end: the sweeper's, where a fork has brought it along."""
    if other_end is not None:
        other_end.close()
    Server(pipe, work, threads, timeout).serve()
