import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Annotated

from ablatio import Positive, launchers
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest, Work


@launchers.register("fresh")
class Fresh:
    """Start a fresh Python process for each run.  Source: multiprocessing, start method spawn."""

    def __init__(self, work: Work, *, workers: Annotated[int, Positive, "runs at a time"] = 1) -> None:
        self.work, self.slots = work, workers
        self.running: dict[str, tuple[multiprocessing.Process, LaunchRequest]] = {}

    def start(self) -> None:
        self.context = multiprocessing.get_context("spawn")

    def submit(self, order: LaunchRequest) -> None:
        process = self.context.Process(target=_run, args=(self.work, order))
        process.start()
        self.running[order.job] = process, order

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]:
        ready = wait([process.sentinel for process, _ in self.running.values()], seconds)
        ended = [job for job, (process, _) in self.running.items() if process.sentinel in ready]
        return [_outcome(*self.running.pop(job)) for job in ended]

    def cancel(self, job: str) -> None:
        self.running[job][0].terminate()

    def stop(self) -> None:
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            process.join()


def _run(work: Work, order: LaunchRequest) -> None:
    sys.exit(work(order, threads=1))


def _outcome(process: multiprocessing.Process, order: LaunchRequest) -> LaunchOutcome:
    process.join()
    code = process.exitcode or 0
    return LaunchOutcome(order, "signal", -code) if code < 0 else LaunchOutcome(order, "exit", code)
