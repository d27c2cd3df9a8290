"""Launch requests and outcomes: all that a launcher knows of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

GPU_RUNS = "ABLATIO_GPU_RUNS"  # environment variable of a run: number of runs that may share its GPU, and its memory


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One attempt at one job of the study in `folder`; `offset` is the byte offset of its claim in the ledger.

    devices   number of devices that the run uses on its machine; GPUs of a run of several are its own
    together  largest number of runs that may be executed at the same time, this one included
    on_cpu    True if the run asks for no GPU
    """

    folder: str
    job: str
    attempt: int
    offset: int
    devices: int = 1
    together: int = 1
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class LaunchOutcome:
    """How the process of a launch request ended.

    exit     by itself, with exit status `code`
    signal   killed by signal number `code`
    timeout  stopped by the launcher after its time limit
    lost     unknown to the launcher, because its server died or its machine is gone
    """

    order: LaunchRequest
    how: Literal["exit", "signal", "timeout", "lost"]
    code: int = 0


class Work(Protocol):
    """Function that a launcher calls in a new process for each launch request; it must be importable by name.

    warm    attribute: does the heavy imports; called once, in the process that the workers are forked from
    """

    warm: Callable[[], None]

    def __call__(self, order: LaunchRequest, threads: int) -> int:
        """Run the job with `threads` threads, write its outcome into the ledger and return the exit status."""
        ...
