"""What a launcher is given, and what it gives back; no more is known of a run where it is launched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One attempt at one job of the study in `folder`; `offset`: of its claim in the ledger."""

    folder: str
    job: str
    attempt: int
    offset: int


@dataclass(frozen=True, slots=True)
class LaunchOutcome:
    """How the process of an order ended: by itself with a `code`, by signal `code`, by us after too long a time; or
    lost: the launcher does not know (its server died, its machine is gone)."""

    order: LaunchRequest
    how: Literal["exit", "signal", "timeout", "lost"]
    code: int = 0


class Work(Protocol):
    """What a launcher calls in a process of its own for each order; an importable function with one attribute.

    warm    does the heavy imports; called once in the process that the others are forked from
    """

    warm: Callable[[], None]

    def __call__(self, order: LaunchRequest, threads: int) -> int:
        """Do the job, write its end into the ledger, and give back the exit code."""
        ...
