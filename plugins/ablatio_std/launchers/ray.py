"""Runs on a Ray cluster, or on this machine under Ray."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from ablatio import NonNegative, Positive, launchers
from ablatio.errors import EnvironmentFault, UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._server import GRACE
from ablatio_std.launchers.pool import Pool, Seconds

OBJECT_STORE = 100_000_000  # bytes, near Ray's minimum: orders and ends are all that travels
AGAIN = 5.0  # seconds after which a run that was asked to stop is asked again


class Runner:
    """One place of the cluster: a pool of one worker, so that a run that dies takes neither Ray's process nor the
    imports along.  An actor with coroutines begins its calls in the order in which they were made."""

    def __init__(self, work: Work, threads: int, timeout: float | None, home: Path) -> None:
        with suppress(OSError):  # paths that are relative mean the same on a shared disk
            os.chdir(home)
        self.pool = Pool(work, workers=1, threads=threads, timeout=timeout)
        self.pool.start()
        self.asked: set[str] = set()  # jobs that are to stop

    async def ready(self) -> None:
        """It has a place."""

    async def run(self, order: LaunchRequest) -> LaunchOutcome:
        self.pool.submit(order)
        while not (ends := await asyncio.to_thread(self.pool.poll, AGAIN)):
            if order.job in self.asked:  # the first word came before there was a process to hear it
                self.pool.cancel(order.job)
        return ends[0]

    async def cancel(self, job: str) -> None:
        self.asked.add(job)
        self.pool.cancel(job)


@launchers.register("ray")
class Ray:
    """One actor per place of a Ray cluster; each forks its runs from a server that has done the heavy imports once.

    The study's folder is on a disk that all nodes share.  Ray repeats nothing by itself: a run whose node is gone is
    lost, and the sweep decides what becomes of it.

    Source: Moritz et al. 2018, Ray: A Distributed Framework for Emerging AI Applications
    """

    def __init__(
        self,
        work: Work,
        *,
        workers: Annotated[int | None, Positive, "runs at a time; by default what the nodes have room for"] = None,
        num_cpus: Annotated[float, Positive, "cores that Ray sets aside for a run, which has as many threads"] = 1.0,
        num_gpus: Annotated[float, NonNegative, "GPUs that Ray sets aside for a run"] = 0.0,
        address: Annotated[str | None, "of the cluster: host:port or auto; null: this machine alone"] = None,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.timeout, self.address = work, timeout, address
        self.workers, self.num_cpus, self.num_gpus = workers, num_cpus, num_gpus
        self.slots = workers or 1  # until the nodes can be counted
        self.waiting: list[LaunchRequest] = []  # for a runner that has a place: another may never get one
        self.starting: dict[Any, Any] = {}  # what will say that it has a place -> the runner
        self.idle: list[Any] = []
        self.running: dict[Any, tuple[LaunchRequest, Any]] = {}
        self.asked: set[str] = set()  # jobs that are to stop as soon as they have a place

    def start(self) -> None:
        self.ray = _ray()
        self.connected = not self.ray.is_initialized()  # else it is the caller's
        if self.connected:
            self._connect()
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        has = self.ray.cluster_resources()
        fits = min(int(has.get(what, 0) / share) for what, share in needs.items() if share)
        self.slots = self.workers or fits
        if fits == 0:
            self._disconnect()
            raise UserError(
                f"launcher=ray: a run needs {self.num_cpus:g} cores and {self.num_gpus:g} GPUs, the cluster has "
                f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}\n    try: launcher.num_cpus=1 launcher.num_gpus=0"
            )
        self.runner = self.ray.remote(Runner).options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0
        )

    def submit(self, order: LaunchRequest) -> None:
        self.waiting.append(order)
        self._send()

    def cancel(self, job: str) -> None:
        for order, runner in self.running.values():
            if order.job == job:
                runner.cancel.remote(job)
        if any(order.job == job for order in self.waiting):
            self.asked.add(job)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        asked = [*self.running, *self.starting]
        if not asked:
            time.sleep(seconds)
            return []
        if not self.ray.wait(asked, timeout=seconds)[0]:
            return []
        told = self.ray.wait(asked, num_returns=len(asked), timeout=0)[0]
        ends = [self._end(answer) for answer in told if answer in self.running]
        for answer in told:
            self._arrived(answer)
        self._send()
        return ends

    def stop(self) -> None:
        self.waiting.clear()
        for order, _ in self.running.values():
            self.cancel(order.job)
        deadline = time.monotonic() + GRACE + 5
        while self.running and time.monotonic() < deadline:
            with suppress(EnvironmentFault):
                self.poll(1.0)
        for runner in (*self.idle, *self.starting.values(), *(runner for _, runner in self.running.values())):
            self.ray.kill(runner)
        self.idle, self.starting, self.running = [], {}, {}
        self._disconnect()

    def _send(self) -> None:
        while self.waiting and self.idle:
            runner = self.idle.pop()
            order = self.waiting.pop(0)
            self.running[runner.run.remote(order)] = order, runner
            if order.job in self.asked:
                self.asked.remove(order.job)
                runner.cancel.remote(order.job)
        threads = max(1, int(self.num_cpus))
        while len(self.starting) < min(len(self.waiting), self.slots - len(self.running)):
            runner = self.runner.remote(self.work, threads, self.timeout, Path.cwd())
            self.starting[runner.ready.remote()] = runner

    def _arrived(self, answer: Any) -> None:
        """A runner has its place; one whose node is gone before that is asked for anew."""
        runner = self.starting.pop(answer, None)
        if runner is None:
            return
        try:
            self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._refuse(error)
        else:
            self.idle.append(runner)

    def _refuse(self, error: Any) -> None:
        """Raise where it would meet every run."""
        if isinstance(error, self.ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
            raise EnvironmentFault(f"a node of the cluster cannot run ablatio: {error}") from None

    def _end(self, answer: Any) -> LaunchOutcome:
        order, runner = self.running.pop(answer)
        try:
            end: LaunchOutcome = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._refuse(error)
            return LaunchOutcome(order, "lost")
        self.idle.append(runner)
        return end

    def _connect(self) -> None:
        silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            cores = ceil(self.workers * self.num_cpus) if self.workers else None
            silent |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        with _own_signals():
            try:
                self.ray.init(address=self.address or "local", **silent)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = self.address or "this machine"
                raise EnvironmentFault(
                    f"launcher=ray: no cluster answers at {where}: {error}\n    try: launcher.address=null"
                ) from None

    def _disconnect(self) -> None:
        if self.connected:
            self.ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of the sweeper's."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # num_gpus=0 hides no GPU, as in the pool
    try:
        import ray
    except ImportError:
        raise UserError("launcher=ray runs on Ray\n    try: pip install 'ablatio[ray]'") from None
    return ray
