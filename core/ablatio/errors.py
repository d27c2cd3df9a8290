"""Exceptions for every failure that a user can meet, each with the exit code of the command line.

Exit codes: 0 done, 2 user error, 3 sweep partly failed, 4 diverged, 5 environment (disk, permission), 75 preempted.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class AblatioError(Exception):
    """Base class of errors that the command line prints without a traceback: what is wrong, and what to do."""

    exit_code = 2

    def for_command(self, words: Sequence[str]) -> str:
        """The message after a command; `words`: the words of the command, without those that name files."""
        return str(self)


class UserError(AblatioError):
    """The command, the config or an input file cannot be used as it is."""


class SweepFailed(AblatioError):
    """Some runs of a sweep failed; the others are done."""

    exit_code = 3


class Diverged(AblatioError):
    """The loss, a gradient or a weight is no longer finite."""

    exit_code = 4


class EnvironmentFault(AblatioError):
    """The machine cannot do what was asked: no disk space, no permission, no such device."""

    exit_code = 5


class DamagedFile(EnvironmentFault):
    """The content of a file does not match its recorded digest, so it is not used."""


class Preempted(AblatioError):
    """The run was asked to stop: it has written a checkpoint, and `resume` continues from it."""

    exit_code = 75


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a config.

    where        the dotted key that is wrong
    what         the value that was given and why it cannot be used
    fix          a setting (key=value) that works
    combination  True if the value of `where` is valid by itself, but not together with other settings
    """

    where: str
    what: str
    fix: str = ""
    combination: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    try: {self.fix}" if self.fix else "")


class ConfigError(UserError):
    """All problems of one config, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"This config cannot run ({count}):", *(f"  {p}" for p in self.problems)]))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggest the options most similar to `word`: '; did you mean rope or nope?', or '' if none is similar."""
    near = difflib.get_close_matches(word, list(options), n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""
