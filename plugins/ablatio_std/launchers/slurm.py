"""Launcher for Slurm: one job per run, submitted through submitit."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from ablatio import NonNegative, Positive, launchers
from ablatio.data.workers import available_cores
from ablatio.errors import UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._server import GRACE
from ablatio_std.launchers.pool import Pool, Seconds

FOLDER = "slurm"  # folder in the study for the files of submitit
POLL_INTERVAL = 0.25  # seconds between checks of the jobs
QUEUE = 100  # default number of jobs in Slurm's queue

log = logging.getLogger(__name__)


def run_on_node(work: Work, order: LaunchRequest, threads: int, timeout: float | None, listen: bool) -> LaunchOutcome:
    """Execute a run in a child process and return its outcome; submitit calls this on the node.

    Slurm announces the end of the time limit and preemption by SIGUSR2, and a cancelled job by SIGTERM; both are passed
    to the run, which saves a checkpoint.  Slurm may signal all processes of the job, so that the children ignore
    SIGUSR2, which would kill them.

    Args:
        work: does the run.
        order: the run to execute.
        threads: threads of torch.
        timeout: seconds after which the run is stopped; None for no limit.
        listen: True to install the signal handlers; False where this is the sweeper's own process.
    """
    pool = Pool(work, workers=1, threads=threads, timeout=timeout)
    if listen:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited by the pool's processes
    pool.start()
    if listen:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: pool.cancel(order.job))
    pool.submit(order)
    try:
        while not (ends := pool.poll(60.0)):
            pass
    finally:
        pool.stop()
    return ends[0]


@launchers.register("slurm")
class Slurm:
    """One Slurm job per run, through submitit; runs that are submitted together form a job array.

    A run of n devices (`trainer.devices`) has one task with n times the cores, GPUs and memory, which starts its ranks.
    The study's folder must be on a disk that all nodes share.  A run that reaches its time limit or is preempted saves
    a checkpoint and is submitted again.

    Source: submitit, github.com/facebookincubator/submitit
    """

    packages = ("submitit=ablatio[slurm]",)
    replaces = ("submitit_slurm", "submitit_local launcher.cluster=local")

    def __init__(
        self,
        work: Work,
        *,
        cluster: Annotated[
            Literal["slurm", "local", "debug"],
            "slurm: a cluster; local: processes on this machine; debug: one run after the other in this process",
        ] = "slurm",
        workers: Annotated[
            int | None, Positive, "devices in use at a time; null: 100, on this machine cores / cpus"
        ] = None,
        partition: Annotated[str | None, "Slurm partition; null: the cluster's default"] = None,
        time: Annotated[int, Positive, "time limit of a job in minutes; a longer run continues in another job"] = 240,
        cpus: Annotated[int, Positive, "cores of a device of a run, and its number of threads"] = 1,
        gpus: Annotated[int, NonNegative, "GPUs of a device of a run"] = 0,
        memory: Annotated[float, Positive, "memory of a device of a run in GB"] = 8.0,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.cluster, self.timeout, self.partition = work, cluster, timeout, partition
        self.time, self.cpus, self.gpus, self.memory = time, cpus, gpus, memory
        on_this_machine = 1 if cluster == "debug" else max(1, available_cores() // cpus)
        self.slots = workers or (QUEUE if cluster == "slurm" else on_this_machine)
        self.waiting: list[LaunchRequest] = []
        self.running: dict[str, tuple[LaunchRequest, Any]] = {}

    def start(self) -> None:
        self.submitit = _submitit()
        self.executors: dict[int, Any] = {}  # by number of devices

    def submit(self, order: LaunchRequest) -> None:
        self.waiting.append(order)  # until the next poll, so that requests made together become one job array

    def cancel(self, job: str) -> None:
        self._send()
        if job not in self.running:
            return
        submitted = self.running[job][1]
        if self.cluster == "local":
            os.kill(int(submitted.job_id), signal.SIGTERM)  # submitit's cancel() allows a second for a checkpoint
        else:
            submitted.cancel(check=False)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        self._send()
        deadline = time.monotonic() + seconds
        while not (ended := [job for job, (_, submitted) in self.running.items() if _has_ended(submitted)]):
            if time.monotonic() >= deadline:
                return []
            time.sleep(min(POLL_INTERVAL, max(0.0, deadline - time.monotonic())))
        return [self._end(*self.running.pop(job)) for job in ended]

    def stop(self) -> None:
        self.waiting.clear()
        for job in list(self.running):
            self.cancel(job)
        deadline = time.monotonic() + GRACE + 5
        while self.running and time.monotonic() < deadline:
            self.poll(POLL_INTERVAL)

    def _send(self) -> None:
        """Submit the waiting requests, with Slurm as one job array for each number of devices."""
        orders, self.waiting = self.waiting, []
        for devices in dict.fromkeys(order.devices for order in orders):
            self._send_array([order for order in orders if order.devices == devices], devices)

    def _send_array(self, orders: Sequence[LaunchRequest], devices: int) -> None:
        if devices not in self.executors:
            self.executors[devices] = self._executor(Path(orders[0].folder), devices)
        executor = self.executors[devices]
        listen = self.cluster != "debug"  # with debug the run is executed in this process, which has its own handlers
        with ExitStack() as stack:
            if self.cluster == "slurm":
                stack.enter_context(executor.batch())
            jobs = [executor.submit(run_on_node, self.work, o, self.cpus, self.timeout, listen) for o in orders]
        self.running |= {order.job: (order, submitted) for order, submitted in zip(orders, jobs, strict=True)}

    def _executor(self, study: Path, devices: int) -> Any:
        try:
            executor = self.submitit.AutoExecutor(study / FOLDER, self.cluster)
        except RuntimeError as error:
            raise UserError(f"launcher=slurm: {error}\n    try: launcher.cluster=local") from None
        executor.update_parameters(
            name="ablatio", timeout_min=self.time, cpus_per_task=devices * self.cpus,
            gpus_per_node=devices * self.gpus, mem_gb=devices * self.memory, slurm_partition=self.partition,
            slurm_array_parallelism=max(1, self.slots // devices),
        )  # fmt: skip
        return executor

    def _end(self, order: LaunchRequest, submitted: Any) -> LaunchOutcome:
        try:
            end: LaunchOutcome = submitted.result()
        except Exception as error:  # submitit raises many types: job failed, no result file, an error of the node
            log.warning("Slurm job %s of run %s has no result, the run counts as lost: %s", submitted, order.job, error)
            return LaunchOutcome(order, "lost")
        return end


def _has_ended(submitted: Any) -> bool:
    try:
        return bool(submitted.done())
    except Exception as error:  # submitit raises for a job that was cancelled before it started
        log.warning("the state of Slurm job %s is unknown, it counts as ended: %s", submitted, error)
        return True


def _submitit() -> Any:
    """Import submitit."""
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=slurm needs the package submitit\n    try: pip install 'ablatio[slurm]'") from None
    return submitit
