"""Launcher for a Ray cluster, or for this machine under Ray."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from ablatio import NonNegative, Positive, launchers
from ablatio.errors import EnvironmentFault, UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._server import GRACE
from ablatio_std.launchers.pool import Pool, Seconds

OBJECT_STORE = 100_000_000  # bytes, near Ray's minimum: only requests and outcomes are sent
RETRY_CANCEL = 5.0  # seconds between requests to stop a run


class Runner:
    """Ray actor with the resources of one run: a pool of one worker.

    A run that dies then ends neither Ray's process nor the one with the imports.  Its methods are coroutines, which Ray
    starts in the order of the calls.
    """

    def __init__(self, work: Work, threads: int, timeout: float | None, home: Path) -> None:
        with suppress(OSError):  # relative paths must mean the same as in the sweeper, on a shared disk
            os.chdir(home)
        self.pool = Pool(work, workers=1, threads=threads, timeout=timeout)
        self.pool.start()
        self.cancelled: set[str] = set()  # jobs to stop

    async def ready(self) -> None:
        """Return as soon as Ray has placed the actor."""

    async def run(self, order: LaunchRequest) -> LaunchOutcome:
        """Execute one run and return its outcome."""
        self.pool.submit(order)
        while not (ends := await asyncio.to_thread(self.pool.poll, RETRY_CANCEL)):
            if order.job in self.cancelled:  # the first request may have come before the process was forked
                self.pool.cancel(order.job)
        return ends[0]

    async def cancel(self, job: str) -> None:
        """Ask a job to stop with a checkpoint."""
        self.cancelled.add(job)
        self.pool.cancel(job)


@launchers.register("ray")
class Ray:
    """One Ray actor per concurrent run; each forks its runs from a server that has done the heavy imports once.

    The study's folder must be on a disk that all nodes share.  Ray's own retries are off: a run whose node is gone is
    reported as lost, and the sweep decides whether to repeat it.

    Source: Moritz et al. 2018, Ray: A Distributed Framework for Emerging AI Applications
    """

    packages = ("ray=ablatio[ray]",)
    replaces = ("ray_aws",)

    def __init__(
        self,
        work: Work,
        *,
        workers: Annotated[int | None, Positive, "runs at a time; null: as many as fit the cluster"] = None,
        num_cpus: Annotated[float, Positive, "cores that Ray reserves for a run, and its number of threads"] = 1.0,
        num_gpus: Annotated[float, NonNegative, "GPUs that Ray reserves for a run"] = 0.0,
        address: Annotated[str | None, "address of the cluster, host:port or auto; null: this machine only"] = None,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.timeout, self.address = work, timeout, address
        self.workers, self.num_cpus, self.num_gpus = workers, num_cpus, num_gpus
        self.connected = False
        self.slots = workers or 1  # start() counts the cluster's resources
        # Requests go to runners that Ray has placed: one that is not placed may never be.
        self.waiting: list[LaunchRequest] = []
        self.starting: dict[Any, Any] = {}  # pending ready() -> its runner
        self.idle: list[Any] = []
        self.running: dict[Any, tuple[LaunchRequest, Any]] = {}  # pending run() -> its request and runner
        self.cancelled: set[str] = set()  # waiting jobs to stop as soon as they run

    def start(self) -> None:
        self.ray = _ray()
        self.connected = not self.ray.is_initialized()  # an existing connection is the caller's, and is left open
        if self.connected:
            self._connect()
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        has = self.ray.cluster_resources()
        fitting = min(int(has.get(what, 0) / amount) for what, amount in needs.items() if amount)
        self.slots = self.workers or fitting
        if fitting == 0:
            self._disconnect()
            raise UserError(
                f"launcher=ray: a run needs {self.num_cpus:g} cores and {self.num_gpus:g} GPUs, and the cluster has "
                f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}\n    try: launcher.num_cpus=1 launcher.num_gpus=0"
            )
        self.runner = self.ray.remote(Runner).options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0
        )

    def submit(self, order: LaunchRequest) -> None:
        # Ray reserves whole GPUs, or places as many runs on one as their shares fit.
        reserved = {"together": max(1, int(1 / self.num_gpus))} if self.num_gpus else {}
        self.waiting.append(replace(order, **reserved))
        self._send()

    def cancel(self, job: str) -> None:
        for order, runner in self.running.values():
            if order.job == job:
                runner.cancel.remote(job)
        if any(order.job == job for order in self.waiting):
            self.cancelled.add(job)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        pending = [*self.running, *self.starting]
        if not pending:
            time.sleep(seconds)
            return []
        if not self.ray.wait(pending, timeout=seconds)[0]:
            return []
        completed = self.ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        ends = [self._end(call) for call in completed if call in self.running]
        for call in completed:
            self._started(call)
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
        """Give waiting requests to idle runners, and ask Ray for more runners if some still wait."""
        while self.waiting and self.idle:
            runner = self.idle.pop()
            order = self.waiting.pop(0)
            self.running[runner.run.remote(order)] = order, runner
            if order.job in self.cancelled:
                self.cancelled.remove(order.job)
                runner.cancel.remote(order.job)
        threads = max(1, int(self.num_cpus))
        while len(self.starting) < min(len(self.waiting), self.slots - len(self.running)):
            runner = self.runner.remote(self.work, threads, self.timeout, Path.cwd())
            self.starting[runner.ready.remote()] = runner

    def _started(self, call: Any) -> None:
        """Mark the runner of a completed ready() as idle; if its node died first, _send() asks for another one."""
        runner = self.starting.pop(call, None)
        if runner is None:
            return
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self._raise_if_permanent(error)
        else:
            self.idle.append(runner)

    def _raise_if_permanent(self, error: Any) -> None:
        """Raise EnvironmentFault if the error would occur in every run."""
        if isinstance(error, self.ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
            raise EnvironmentFault(
                f"launcher=ray: a node of the cluster cannot run ablatio: {error}\n"
                "    try: ablatio doctor, on that node"
            ) from None

    def _end(self, call: Any) -> LaunchOutcome:
        order, runner = self.running.pop(call)
        try:
            end: LaunchOutcome = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self._raise_if_permanent(error)
            return LaunchOutcome(order, "lost")
        self.idle.append(runner)
        return end

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            cores = ceil(self.workers * self.num_cpus) if self.workers else None
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        with _restored_signals():
            try:
                self.ray.init(address=self.address or "local", **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = self.address or "this machine"
                raise EnvironmentFault(
                    f"launcher=ray: no cluster answers at {where}: {error}\n    try: launcher.address=null"
                ) from None

    def _disconnect(self) -> None:
        if self.connected:
            self.ray.shutdown()


@contextmanager
def _restored_signals() -> Iterator[None]:
    """Restore the sweeper's signal handlers on exit: ray.init() replaces them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ray() -> Any:
    """Import ray, with its usage reports off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # with num_gpus=0 runs see all GPUs, as in a pool
    try:
        import ray
    except ImportError:
        raise UserError("launcher=ray needs the package ray\n    try: pip install 'ablatio[ray]'") from None
    return ray
