"""The server of a pool: a process that does the heavy imports once and forks one process per run.

The server itself only imports: no CUDA, no threads, no training.  Each run is a process group of its own, so that its
leftover processes are killed with it, and sees as many GPUs as it has devices (see `_gpus`).  If the sweeper dies, the
server sends SIGTERM to the runs, which save a checkpoint; if the server dies, the kernel does (prctl PR_SET_PDEATHSIG).
"""

import gc
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from ablatio.registry.kinds.launch_types import GPU_RUNS, LaunchOutcome, LaunchRequest, Work
from ablatio.storage.process import end_with_parent
from ablatio_std.launchers._gpus import gpus, least_used, sharing

GRACE = 20.0  # seconds between SIGTERM and SIGKILL


@dataclass(slots=True)
class Child:
    """A running child process.

    deadline    time.monotonic() of the next signal: SIGTERM, or SIGKILL once it is `terminated`
    gpus        names of its GPUs; empty for none
    terminated  True after SIGTERM was sent
    timed_out   True if SIGTERM was sent because of the timeout
    """

    order: LaunchRequest
    deadline: float
    gpus: list[str]
    terminated: bool = False
    timed_out: bool = False


class Server:
    """Server of a pool, controlled by the messages of `pipe`.

    A LaunchRequest starts a run, a job's id asks that job to stop, None asks all jobs to stop and ends the server.  A
    run takes as many of the `places` and GPUs as it has devices, and waits until they are free; one that needs more
    than there are runs alone.
    """

    def __init__(
        self, pipe: Connection, work: Work, threads: int, timeout: float | None, places: int, grace: float
    ) -> None:
        self.pipe, self.work, self.threads = pipe, work, threads
        self.timeout = timeout or float("inf")
        self.places, self.grace = places, grace
        self.waiting: list[LaunchRequest] = []
        self.children: dict[int, Child] = {}
        self.gpus: list[str] = []
        self.stopping = False
        self.woken, self.wake = os.pipe()  # ends the wait below on SIGCHLD and SIGTERM

    def serve(self) -> None:
        """Serve until told to stop and all children have ended."""
        os.setsid()  # Ctrl-C must reach the sweeper only
        self._install_signal_handlers()
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counts GPUs without initializing CUDA
        gc.disable()  # objects of the imports live as long as the server
        self.work.warm()
        self.gpus = gpus()
        gc.freeze()  # collections in the runs then do not write to pages that are shared with the server
        self._send(None)
        while not self.stopping or self.children:
            ready = wait([self.pipe, self.woken], self._wait_seconds())
            if self.woken in ready:
                os.read(self.woken, 4096)
            if self.pipe in ready:
                self._handle_message()
            self._reap()
            self._enforce_deadlines()
            self._start_waiting()

    def _install_signal_handlers(self) -> None:
        os.set_blocking(self.wake, False)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())

    def _handle_message(self) -> None:
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):  # the sweeper is gone
            message = None
        if isinstance(message, LaunchRequest):
            self.waiting.append(message)
        elif message is None:
            self._stop()
        else:
            for pid, child in self.children.items():
                if child.order.job == message:
                    self._terminate(pid, child)
            for order in [order for order in self.waiting if order.job == message]:
                self.waiting.remove(order)
                self._send(LaunchOutcome(order, "lost"))

    def _start_waiting(self) -> None:
        """Start the runs that have waited longest, while there are places for them."""
        while self.waiting and not self.stopping:
            if self.children and not self._has_room(self.waiting[0]):
                return
            self._fork(self.waiting.pop(0))

    def _has_room(self, order: LaunchRequest) -> bool:
        taken = sum(child.order.devices for child in self.children.values())
        on_gpu = bool(self.gpus) and not order.on_cpu
        return taken + order.devices <= self.places and len(self._gpus_for(order)) == (order.devices if on_gpu else 0)

    def _gpus_for(self, order: LaunchRequest) -> list[str]:
        if not self.gpus or order.on_cpu:
            return []
        runs = [child.gpus for child in self.children.values()]
        return least_used(self.gpus, runs, order.devices, sharing(order.together, self.gpus))

    def _stop(self) -> None:
        self.stopping = True
        for pid, child in self.children.items():
            self._terminate(pid, child)

    def _terminate(self, pid: int, child: Child) -> None:
        if not child.terminated:
            child.terminated, child.deadline = True, time.monotonic() + self.grace
            os.kill(pid, signal.SIGTERM)  # not reaped yet, so the pid cannot belong to another process

    def _fork(self, order: LaunchRequest) -> None:
        server, chosen = os.getpid(), self._gpus_for(order)
        # SIGTERM is blocked until the child has reset its handlers: it would run the server's handler otherwise.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            self.children[pid] = Child(order, time.monotonic() + self.timeout, chosen)
            return
        code = 1
        try:
            self._set_up_child(server, chosen, order.together)
            code = self.work(order, self.threads)
        except BaseException:  # an exception of the run must not continue in the server's loop
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def _set_up_child(self, server: int, chosen: list[str], together: int) -> None:
        """Undo the server's settings in the forked child: signals, pipes, garbage collection; choose its GPUs.

        A child with one GPU is told how many of the runs that may be executed `together` share it.
        """
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        self.pipe.close()
        os.close(self.woken)
        os.close(self.wake)
        gc.enable()
        end_with_parent(signal.SIGTERM)
        if os.getppid() != server:  # the server died before that, so its death sends no signal
            os._exit(75)
        if chosen:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
            os.environ[GPU_RUNS] = str(sharing(together, self.gpus) if len(chosen) == 1 else 1)

    def _reap(self) -> None:
        """Collect ended children, kill the processes that they left, and send the outcomes."""
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            how = "timeout" if child.timed_out else "signal" if code < 0 else "exit"
            self._send(LaunchOutcome(child.order, how, abs(code)))  # type: ignore[arg-type]

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for pid, child in self.children.items():
            if now < child.deadline:
                continue
            if child.terminated:
                os.killpg(pid, signal.SIGKILL)
            else:
                child.timed_out = True
                self._terminate(pid, child)

    def _wait_seconds(self) -> float | None:
        """Seconds until the next deadline; None if there is none."""
        first = min((c.deadline for c in self.children.values()), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _send(self, message: LaunchOutcome | None) -> None:
        with suppress(OSError):  # the sweeper is gone, which the next recv() notices
            self.pipe.send(message)


def serve(
    pipe: Connection,
    other_end: Connection | None,
    work: Work,
    threads: int,
    timeout: float | None,
    places: int,
    grace: float,
) -> None:
    """Main function of the server's process.

    Args:
        pipe: the server's end of the pipe.
        other_end: the sweeper's end, which a fork has copied and which is closed here; None after a spawn.
        work: does one run.
        threads: threads of torch in each run.
        timeout: seconds after which a run is stopped; None for no limit.
        places: number of devices that the runs use at a time.
        grace: seconds between SIGTERM and SIGKILL.
    """
    if other_end is not None:
        other_end.close()
    Server(pipe, work, threads, timeout, places, grace).serve()
