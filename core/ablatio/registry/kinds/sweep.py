"""Kinds of a sweep: the design that chooses its runs and the launcher that executes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest
    from ablatio.registry.kinds.search_space import Arm, Trial, TrialResult


class Design(Protocol):
    """Chooses the arms of a sweep; an arm is a mapping {axis key: value as text}.

    Wiring:
    axes       list of search_space.Axis; the seed is not an axis
    baseline   the arm that the others are compared with; by default the first value of each axis

    Methods:
    count()    largest possible number of arms; called before any arm is made
    arms()     optional: all arms, for a fixed design
    more(told) optional: the next search_space.Trials, for a searching design; a pure function of the TrialResults
               told so far, so that a resumed sweep makes the same choices
    aliases()  optional: sentences naming the effects that the arms cannot tell apart
    follow_up()  optional: settings that add arms which tell them apart, {"design.foldover": "true"}; empty: none

    Facts:
    intervals       True if an axis may be an interval
    factors         True if settings vary jointly, so that the effect of each can be estimated
    screens         True if arms serve to estimate effects and are not compared with one another
    single_changes  True if each arm differs from the baseline in one setting
    """

    intervals: ClassVar[bool]
    factors: ClassVar[bool]
    screens: ClassVar[bool]
    single_changes: ClassVar[bool]

    def count(self) -> int: ...


class DesignMethods(Protocol):
    """Optional methods of a Design."""

    def arms(self) -> Iterable[Arm]: ...

    def more(self, told: Sequence[TrialResult]) -> Sequence[Trial]: ...

    def aliases(self) -> Sequence[str]: ...

    def follow_up(self) -> dict[str, str]: ...


class Launcher(Protocol):
    """Runs the jobs of a sweep, each in its own process.

    Wiring:
    work           the launch_types.Work function to call in each process

    Methods:
    start()        called before all others
    submit(order)  start one launch request; returns at once
    poll(seconds)  outcomes of the requests that have ended; waits at most that long for one
    cancel(job)    ask one run to stop
    stop()         called last: ask the runs to write a checkpoint and return when they have ended

    slots          attribute: number of devices that the runs use at the same time

    Facts:
    replaces       launchers of Hydra whose work this one does, for errors: "NAME", or "NAME SETTING"
    """

    slots: int
    replaces: ClassVar[Sequence[str]]

    def start(self) -> None: ...

    def submit(self, order: LaunchRequest) -> None: ...

    def poll(self, seconds: float) -> Sequence[LaunchOutcome]: ...

    def cancel(self, job: str) -> None: ...

    def stop(self) -> None: ...


designs: Registry[Design] = Registry(
    "design",
    "Which arms a sweep runs.",
    contract=(Design, DesignMethods),
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
    contract=(Launcher,),
    wiring=("work",),
    methods=("start", "submit", "poll", "cancel", "stop"),
    facts={"replaces": ()},
    scope="sweep",
    usual="pool",
)
