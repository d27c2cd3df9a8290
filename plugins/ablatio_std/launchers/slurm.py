"""Launcher for Slurm: one job per run, submitted through submitit."""

import io
import logging
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from ablatio import NonNegative, Positive, launchers
from ablatio.data.workers import available_cores
from ablatio.errors import UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work
from ablatio_std.launchers._server import GRACE
from ablatio_std.launchers._slurm_queue import INTERVAL, SHORT_INTERVAL, SHOW, SlurmQueue, names_of
from ablatio_std.launchers.pool import Pool, Seconds

FOLDER = "slurm"  # folder in the study for the files of submitit
POLL_INTERVAL = 0.25  # seconds between checks of the jobs
QUEUE = 100  # default number of jobs in Slurm's queue
# Names of partitions, accounts, nodes, and expressions of features: they become lines of a shell script.
NAME = re.compile(r"[\w.,:@+&|*()\[\]-]*")

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
        account: Annotated[str | None, "account that is charged; null: the user's default"] = None,
        qos: Annotated[str | None, "quality of service; null: the account's default"] = None,
        constraint: Annotated[str | None, "features that a node must have, such as a100&nvlink; null: any node"] = None,
        exclude: Annotated[str | None, "nodes not to use, such as node[3-4],node9; null: none"] = None,
        time: Annotated[int, Positive, "time limit of a job in minutes; a longer run continues in another job"] = 240,
        cpus: Annotated[int, Positive, "cores of a device of a run, and its number of threads"] = 1,
        gpus: Annotated[int, NonNegative, "GPUs of a device of a run"] = 0,
        memory: Annotated[float, Positive, "memory of a device of a run in GB"] = 8.0,
        timeout: Seconds = None,
    ) -> None:
        names = {
            "partition": partition, "account": account, "qos": qos, "constraint": constraint, "exclude": exclude
        }  # fmt: skip
        self.names = {f"slurm_{knob}": _checked(knob, name) for knob, name in names.items()}
        self.work, self.cluster, self.timeout = work, cluster, timeout
        self.time, self.cpus, self.gpus, self.memory = time, cpus, gpus, memory
        on_this_machine = 1 if cluster == "debug" else max(1, available_cores() // cpus)
        self.slots = workers or (QUEUE if cluster == "slurm" else on_this_machine)
        self.waiting: list[LaunchRequest] = []
        self.running: dict[str, tuple[LaunchRequest, Any]] = {}
        self.cancelled: set[str] = set()
        self.queue = SlurmQueue()
        self.next_submission = float("-inf")  # on the clock of time.monotonic()

    def start(self) -> None:
        self.submitit = _submitit()
        self.executors: dict[int, Any] = {}  # by number of devices

    def submit(self, order: LaunchRequest) -> None:
        self.waiting.append(order)  # until the next poll, so that requests made together become one job array

    def cancel(self, job: str) -> None:
        self._send()
        if job not in self.running:
            return
        self.cancelled.add(job)
        submitted = self.running[job][1]
        if self.cluster == "local":
            os.kill(int(submitted.job_id), signal.SIGTERM)  # submitit's cancel() allows a second for a checkpoint
        else:
            submitted.cancel(check=False)

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        self._send()
        deadline = time.monotonic() + seconds
        while not (ended := self._ended()):
            if time.monotonic() >= deadline:
                return []
            time.sleep(min(POLL_INTERVAL, max(0.0, deadline - time.monotonic())))
        outcomes = [self._end(*self.running.pop(job)) for job in ended]
        self.cancelled.difference_update(ended)
        return outcomes

    def stop(self) -> None:
        self.waiting.clear()
        self.queue.interval = SHORT_INTERVAL  # a job that had not started leaves without a result
        for job in list(self.running):
            self.cancel(job)
        deadline = time.monotonic() + GRACE + 5
        while self.running and time.monotonic() < deadline:
            self.poll(POLL_INTERVAL)

    def _ended(self) -> list[str]:
        if self.cluster == "slurm":
            self.queue.update({submitted.job_id: job for job, (_, submitted) in self.running.items()})
        return [job for job, (_, submitted) in self.running.items() if self._has_ended(submitted)]

    def _has_ended(self, submitted: Any) -> bool:
        if self.cluster == "slurm":  # submitit would ask sacct
            return _has_result(submitted) or self.queue.has_left(submitted.job_id)
        try:
            return bool(submitted.done())
        except Exception as error:  # submitit raises for a job that was cancelled before it started
            log.warning("the state of job %s is unknown, it counts as ended: %s", submitted, error)
            return True

    def _send(self) -> None:
        """Submit the waiting requests, with Slurm as one job array for each number of devices."""
        if time.monotonic() < self.next_submission:
            return
        orders, self.waiting = self.waiting, []
        for devices in dict.fromkeys(order.devices for order in orders):
            array = [order for order in orders if order.devices == devices]
            try:
                self._send_array(array, devices)
            except UserError as refusal:  # of a limit that counts jobs: there is room when others have ended
                if not self.running:
                    raise
                runs = names_of([order.job for order in array])
                log.warning("%s will be submitted when others have ended: %s", runs, refusal)
                self.waiting += array
                self.next_submission = time.monotonic() + INTERVAL

    def _send_array(self, orders: Sequence[LaunchRequest], devices: int) -> None:
        if devices not in self.executors:
            self.executors[devices] = self._executor(Path(orders[0].folder), devices)
        executor = self.executors[devices]
        listen = self.cluster != "debug"  # with debug the run is executed in this process, which has its own handlers
        try:
            with ExitStack() as stack:
                if self.cluster == "slurm":
                    stack.enter_context(redirect_stderr(io.StringIO()))  # submitit prints what it raises
                    stack.enter_context(executor.batch())
                jobs = [executor.submit(run_on_node, self.work, o, self.cpus, self.timeout, listen) for o in orders]
        except self.submitit.core.utils.FailedJobError as error:
            said = "; ".join(dict.fromkeys(line.removeprefix("sbatch: error: ") for line in str(error).splitlines()))
            raise UserError(f"launcher=slurm: Slurm refused the jobs: {said}\n    try: {SHOW}") from None
        self.running |= {order.job: (order, submitted) for order, submitted in zip(orders, jobs, strict=True)}

    def _executor(self, study: Path, devices: int) -> Any:
        try:
            executor = self.submitit.AutoExecutor(study / FOLDER, self.cluster)
        except RuntimeError as error:
            raise UserError(f"launcher=slurm: {error}\n    try: launcher.cluster=local") from None
        executor.update_parameters(
            name="ablatio", timeout_min=self.time, cpus_per_task=devices * self.cpus,
            gpus_per_node=devices * self.gpus, mem_gb=devices * self.memory,
            slurm_array_parallelism=max(1, self.slots // devices), **self.names,
            slurm_srun_args=[f"--cpus-per-task={devices * self.cpus}"],  # which srun no longer takes from its job
        )  # fmt: skip
        return executor

    def _end(self, order: LaunchRequest, submitted: Any) -> LaunchOutcome:
        if self.cluster == "slurm" and not _has_result(submitted):
            if order.job not in self.cancelled:
                log.warning("Slurm job %s of run %s is gone without a result", submitted.job_id, order.job)
            return LaunchOutcome(order, "lost")
        try:
            end: LaunchOutcome = submitted.result()
        except Exception as error:  # submitit raises many types: job failed, no result file, an error of the node
            log.warning("Slurm job %s of run %s has no result, the run counts as lost: %s", submitted, order.job, error)
            return LaunchOutcome(order, "lost")
        return end


def _has_result(submitted: Any) -> bool:
    """True if the job has written its result."""
    folder = submitted.paths.folder
    with suppress(OSError):  # a shared disk then looks at its server, not at its cache
        folder.chmod(folder.stat().st_mode)
    return bool(submitted.paths.result_pickle.exists())


def _checked(knob: str, name: str | None) -> str | None:
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"launcher.{knob}: expected a name without spaces and quotes, got {name!r}\n    try: {SHOW}")
    return name


def _submitit() -> Any:
    """Import submitit."""
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=slurm needs the package submitit\n    try: pip install 'ablatio[slurm]'") from None
    return submitit
