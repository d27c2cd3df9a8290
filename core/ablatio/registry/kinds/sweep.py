"""Which runs a sweep has, and where they are executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest


class Design(Protocol):
    """Which arms a sweep runs; an arm is {key: value as text}.

    axes      wiring: each has a `key`, its `values` as texts, and `at(u)`, the value at 0 <= u < 1; the seed is none
    baseline  wiring: the arm that others are compared with; the first value of each axis where none was named
    count     how many arms there are at most: asked before any is made
    intervals  whether an axis may be an interval
    factors   True if settings vary together, so that the effect of each can be told
    screens   True if its arms are made to be added up, not to be compared with one another
    single_changes  True if each arm differs from the baseline in one setting

    Any of these: arms(), all of them; more(told), for a search: what it asks for next (search_space), a function of
    what it was told alone; aliases(), sentences: which effects the arms cannot tell apart.
    """

    intervals: ClassVar[bool]
    factors: ClassVar[bool]
    screens: ClassVar[bool]
    single_changes: ClassVar[bool]

    def count(self) -> int: ...


class Launcher(Protocol):
    """Runs the jobs of a sweep, each in a process of its own.

    work   wiring: called there with an order; it does the job and writes its end into the ledger
    slots  how many run at a time

    start() and stop() enclose all else; stop asks the runs for a checkpoint, and returns when they have ended.
    submit(order) returns at once; poll(seconds) waits that long at most for the ends of orders; cancel(job) asks one
    run to stop.
    """

    slots: int

    def start(self) -> None: ...

    def submit(self, order: LaunchRequest) -> None: ...

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]: ...

    def cancel(self, job: str) -> None: ...

    def stop(self) -> None: ...


designs: Registry[Design] = Registry(
    "design",
    "Which arms a sweep runs.",
    wiring=("axes", "baseline"),
    methods=("count",),
    any_of=("arms", "more", "aliases"),
    facts={"intervals": False, "factors": True, "screens": False, "single_changes": False},
    scope="sweep",
    usual="full",
)

launchers: Registry[Launcher] = Registry(
    "launcher",
    "Where the runs of a sweep are executed.",
    wiring=("work",),
    methods=("start", "submit", "poll", "cancel", "stop"),
    scope="sweep",
    usual="pool",
)
