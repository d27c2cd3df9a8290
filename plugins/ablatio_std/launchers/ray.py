"""Launcher for a Ray cluster, or for this machine under Ray."""

import asyncio
import logging
import os
import signal
import time
from collections import Counter
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

    A run of n devices (`trainer.devices`) has n times the resources, on one node; its GPUs are whole ones.

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
        workers: Annotated[int | None, Positive, "devices in use at a time; null: as many as fit the cluster"] = None,
        num_cpus: Annotated[float, Positive, "cores that Ray reserves for a device of a run, and its threads"] = 1.0,
        num_gpus: Annotated[float, NonNegative, "GPUs that Ray reserves for a device of a run"] = 0.0,
        address: Annotated[str | None, "address of the cluster, host:port or auto; null: this machine only"] = None,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.timeout, self.address = work, timeout, address
        self.workers, self.num_cpus, self.num_gpus = workers, num_cpus, num_gpus
        self.connected = False
        self.slots = workers or 1  # start() counts the cluster's resources
        # Requests go to runners that Ray has placed: one that is not placed may never be.
        self.waiting: list[LaunchRequest] = []
        self.starting: dict[Any, tuple[int, Any]] = {}  # pending ready() -> number of devices, runner
        self.idle: list[tuple[int, Any]] = []  # (number of devices, runner)
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
        self.runner = self.ray.remote(Runner)

    def submit(self, order: LaunchRequest) -> None:
        # Ray reserves whole GPUs, or places as many runs on one as their shares fit.
        reserved = {"together": max(1, int(1 / self.num_gpus))} if self.num_gpus else {}
        self._refuse_too_large(order.devices)
        self.waiting.append(replace(order, **reserved))
        self._send()

    def _needs(self, devices: int) -> dict[str, float]:
        """Resources of a run, in Ray's names."""
        gpus = self.num_gpus if devices == 1 else ceil(self.num_gpus)
        return {"CPU": devices * self.num_cpus, "GPU": devices * gpus}

    def _refuse_too_large(self, devices: int) -> None:
        """Raise UserError for a run of several devices that fits no node: Ray would wait for one forever."""
        needs = self._needs(devices)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        fitting = [min(node.get(what, 0) / amount for what, amount in needs.items() if amount) for node in nodes]
        if devices > 1 and nodes and max(fitting) < 1:
            own = self.workers and self.address is None  # this process has started a cluster of so many devices
            instead = f", or launcher.workers={devices}" if own else ""
            raise UserError(
                f"launcher=ray: the ranks of a run with trainer.devices={devices} are on one node, so it needs "
                f"{needs['CPU']:g} cores and {needs['GPU']:g} GPUs there, and no node of the cluster has them\n"
                f"    try: trainer.devices={max(1, int(devices * max(fitting)))}{instead}"
            )

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
        for _, runner in (*self.idle, *self.starting.values(), *self.running.values()):
            self.ray.kill(runner)
        self.idle, self.starting, self.running = [], {}, {}
        self._disconnect()

    def _send(self) -> None:
        """Give waiting requests to idle runners of their size, and ask Ray for more runners if some still wait."""
        for order in list(self.waiting):
            idle = next((pair for pair in self.idle if pair[0] == order.devices), None)
            if idle is None:
                continue
            self.idle.remove(idle)
            self.waiting.remove(order)
            self.running[idle[1].run.remote(order)] = order, idle[1]
            if order.job in self.cancelled:
                self.cancelled.remove(order.job)
                idle[1].cancel.remote(order.job)
        if self.waiting:  # idle runners that are left have another size, and hold what those that wait need
            for _, runner in self.idle:
                self.ray.kill(runner)
            self.idle = []
        wanted = Counter(order.devices for order in self.waiting) - Counter(n for n, _ in self.starting.values())
        for devices in wanted.elements():
            held = [n for n, _ in self.starting.values()] + [order.devices for order, _ in self.running.values()]
            if not held or sum(held) + devices <= self.slots:
                self._start_runner(devices)

    def _start_runner(self, devices: int) -> None:
        needs, threads = self._needs(devices), max(1, int(self.num_cpus))
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0, "max_task_retries": 0}
        runner = self.runner.options(**options).remote(self.work, threads, self.timeout, Path.cwd())
        self.starting[runner.ready.remote()] = devices, runner

    def _started(self, call: Any) -> None:
        """Mark the runner of a completed ready() as idle; if its node died first, _send() asks for another one."""
        started = self.starting.pop(call, None)
        if started is None:
            return
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self._raise_if_permanent(error)
        else:
            self.idle.append(started)

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
        self.idle.append((order.devices, runner))
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
