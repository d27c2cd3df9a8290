"""Runs as jobs of Slurm."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from ablatio import NonNegative, Positive, launchers
from ablatio.errors import UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._server import GRACE
from ablatio_std.launchers.pool import Pool, Seconds, _cores

FOLDER = "slurm"  # in the study: what submitit writes
LOOK = 0.25  # seconds between two looks at the jobs
QUEUE = 100  # jobs in the queue, if nothing is said


def alone(work: Work, order: LaunchRequest, threads: int, timeout: float | None, listen: bool) -> LaunchOutcome:
    """The run in a process of its own, so that its end can be told; what `submitit` calls on the node.

    Slurm says by SIGUSR2 that the time is over, or that others come first, and by SIGTERM that the job is cancelled;
    each asks the run for a checkpoint.  It may say so to all processes of the job, so others are deaf to SIGUSR2.
    """
    pool = Pool(work, workers=1, threads=threads, timeout=timeout)
    if listen:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which the processes of the pool inherit
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
    """One job of Slurm per run, in arrays of those that are ready together, through submitit.

    The study's folder is on a disk that all nodes share.  A run that is stopped at the end of its time, or preempted,
    has a checkpoint and is submitted again.

    Source: submitit, github.com/facebookincubator/submitit
    """

    def __init__(
        self,
        work: Work,
        *,
        cluster: Annotated[
            Literal["slurm", "local", "debug"],
            "slurm; local: processes here; debug: one run after the other",
        ] = "slurm",
        workers: Annotated[int | None, Positive, "runs at a time; by default 100 with Slurm, else one per core"] = None,
        partition: Annotated[str | None, "of the cluster; null: the usual one"] = None,
        time: Annotated[int, Positive, "minutes that Slurm gives a job; a longer run goes on in the next one"] = 240,
        cpus: Annotated[int, Positive, "cores of a run, which has as many threads"] = 1,
        gpus: Annotated[int, NonNegative, "GPUs of a run"] = 0,
        memory: Annotated[float, Positive, "GB of a run"] = 8.0,
        timeout: Seconds = None,
    ) -> None:
        self.work, self.cluster, self.timeout, self.partition = work, cluster, timeout, partition
        self.time, self.cpus, self.gpus, self.memory = time, cpus, gpus, memory
        here = 1 if cluster == "debug" else max(1, _cores() // cpus)
        self.slots = workers or (QUEUE if cluster == "slurm" else here)
        self.waiting: list[LaunchRequest] = []
        self.running: dict[str, tuple[LaunchRequest, Any]] = {}

    def start(self) -> None:
        self.submitit = _submitit()
        self.executor: Any = None

    def submit(self, order: LaunchRequest) -> None:
        self.waiting.append(order)  # until the next poll: what is ready together becomes one array

    def cancel(self, job: str) -> None:
        self._send()
        if job not in self.running:
            return
        submitted = self.running[job][1]
        if self.cluster == "local":
            os.kill(int(submitted.job_id), signal.SIGTERM)  # its own cancel() leaves one second for a checkpoint
        else:
            submitted.cancel(check=False)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        self._send()
        deadline = time.monotonic() + seconds
        while not (over := [job for job, (_, submitted) in self.running.items() if _over(submitted)]):
            if time.monotonic() >= deadline:
                return []
            time.sleep(min(LOOK, max(0.0, deadline - time.monotonic())))
        return [self._end(*self.running.pop(job)) for job in over]

    def stop(self) -> None:
        self.waiting.clear()
        for job in list(self.running):
            self.cancel(job)
        deadline = time.monotonic() + GRACE + 5
        while self.running and time.monotonic() < deadline:
            self.poll(LOOK)

    def _send(self) -> None:
        if not self.waiting:
            return
        self.executor = self.executor or self._executor(Path(self.waiting[0].folder))
        orders, self.waiting = self.waiting, []
        listen = self.cluster != "debug"  # there it is this process that would listen
        with ExitStack() as stack:
            if self.cluster == "slurm":
                stack.enter_context(self.executor.batch())
            sent = [self.executor.submit(alone, self.work, o, self.cpus, self.timeout, listen) for o in orders]
        self.running |= {order.job: (order, submitted) for order, submitted in zip(orders, sent, strict=True)}

    def _executor(self, study: Path) -> Any:
        try:
            executor = self.submitit.AutoExecutor(study / FOLDER, self.cluster)
        except RuntimeError as error:
            raise UserError(f"launcher=slurm: {error}\n    try: launcher.cluster=local") from None
        executor.update_parameters(
            name="ablatio", timeout_min=self.time, cpus_per_task=self.cpus, gpus_per_node=self.gpus,
            mem_gb=self.memory, slurm_partition=self.partition, slurm_array_parallelism=self.slots,
        )  # fmt: skip
        return executor

    def _end(self, order: LaunchRequest, submitted: Any) -> LaunchOutcome:
        try:
            end: LaunchOutcome = submitted.result()
        except Exception:  # no result, or another's error: how the process ended is not known
            return LaunchOutcome(order, "lost")
        return end


def _over(submitted: Any) -> bool:
    try:
        return bool(submitted.done())
    except Exception:  # it was cancelled before it began
        return True


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=slurm runs through submitit\n    try: pip install 'ablatio[slurm]'") from None
    return submitit
