"""Every failure that a user can meet, with the exit code of the command line.

Exit codes: 0 done, 2 user error, 3 sweep partly failed, 4 diverged, 5 environment (disk, permission), 75 preempted.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class AblatioError(Exception):
    """What is wrong and what to do about it; shown without a traceback."""

    exit_code = 2


class UserError(AblatioError):
    """The command, the config or an input file cannot be used as it is."""


class SweepFailed(AblatioError):
    """Some runs of a sweep failed; the others are done."""

    exit_code = 3


class Diverged(AblatioError):
    """The loss, a gradient or a weight is no longer finite."""

    exit_code = 4


class EnvironmentFault(AblatioError):
    """The machine refuses: no space, no permission, a missing device."""

    exit_code = 5


class DamagedFile(EnvironmentFault):
    """A file does not hold what its digest says; never used as data."""


class Preempted(AblatioError):
    """The run was asked to stop; a checkpoint is written and `resume` continues it."""

    exit_code = 75


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config: `where` (a dotted key), `what` came and why not, a `fix` (key=value).

    combination: `where` is fine by itself, and wrong beside others.
    """

    where: str
    what: str
    fix: str = ""
    combination: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    try: {self.fix}" if self.fix else "")


class ConfigError(UserError):
    """All problems of one config at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"This config cannot run ({count}):", *(f"  {p}" for p in self.problems)]))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """'; did you mean rope or nope?', or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(options), n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""
