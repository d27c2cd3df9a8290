"""Command line `ablatio COMMAND ...`: errors without a traceback, with the exit codes of `ablatio.errors`."""

import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from ablatio.cli.commands import COMMANDS
from ablatio.cli.pages import columns, fitted, rows
from ablatio.errors import AblatioError, DamagedFile, EnvironmentFault, Preempted
from ablatio.storage import before_torch
from ablatio.storage.collector import collect_seldom
from ablatio.storage.early_stop import early_stops
from ablatio.storage.process import Stopped
from ablatio.storage.streams import SafeStream, safe_streams

HELP = """\
ablatio measures what one part of a language model or its training contributes.

  ablatio train                           train the default model, 4 minutes
  ablatio train norm=layernorm seed=2     choose parts and settings by name
  ablatio train -m norm=layernorm,rmsnorm seed=1,2,3
                                          run a sweep over all combinations
  ablatio train -m +sweep=first_study     run a study from sweeps/
  ablatio train resume=runs/NAME          continue a run, bit for bit

commands:
{commands}

`ablatio COMMAND --help` explains a command.  Exit codes: 0 success, 2 invalid
input, 3 some runs of a sweep failed, 4 the run diverged, 5 problem of the
machine (disk, permissions), 75 interrupted and resumable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    before_torch.set_defaults()
    collect_seldom()
    with safe_streams() as (out, _):
        code = _guarded(words)
        out.flush()
        return code if out.error is None or out.is_broken_pipe else _lost_output(out, words, code)


def _guarded(words: list[str]) -> int:
    """Run one command; an error becomes a message and an exit code."""
    try:
        with early_stops() if _trains(words) else nullcontext():
            return _dispatch(words)
    except DamagedFile as error:
        from ablatio.cli.damaged_files import with_hint

        print(f"ablatio: {with_hint(error, _without_files(words))}", file=sys.stderr)
        return error.exit_code
    except AblatioError as error:
        print(f"ablatio: {error.for_command(_without_files(words))}", file=sys.stderr)
        return error.exit_code
    except Stopped as error:
        print(f"ablatio: {error}", file=sys.stderr)
        return Preempted.exit_code
    except KeyboardInterrupt:
        return 130


def _trains(words: list[str]) -> bool:
    return bool(words) and words[0] in ("train", "resume")


def _without_files(words: list[str]) -> list[str]:
    """The words of a command without `parts=FILE`, for a message that names the right file."""
    return [word for word in words if not word.startswith("parts=")]


def _lost_output(out: SafeStream, words: list[str], code: int) -> int:
    """Say that the output could not be written.  A run is not its output: its files and its exit code stand."""
    print(f"ablatio: the output could not be written to stdout: {out.why()}", file=sys.stderr)
    return code or (0 if _trains(words) else EnvironmentFault.exit_code)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        table = "\n".join(f"  {line}" for line in rows(COMMANDS, columns() - 2, max(map(len, COMMANDS)) + 2))
        print(fitted(HELP.format(commands=table)))
        return 0 if words else 2
    if words[0] == "--version":
        from ablatio import __version__

        print(f"ablatio {__version__}")
        return 0
    command = words[0]
    if command == "__complete":
        from ablatio.cli import completion

        return completion.answer(words[1:])
    if command not in COMMANDS:
        from ablatio.errors import did_you_mean

        print(f"ablatio: there is no command `{command}`{did_you_mean(command, COMMANDS)}", file=sys.stderr)
        print("    try: ablatio --help", file=sys.stderr)
        return 2
    from ablatio.cli.given_files import given_files

    with given_files(words) as (_, *rest):
        module = importlib.import_module(f"ablatio.cli.{command.replace('-', '_')}")
        run = module.run
        return int(run(rest))


if __name__ == "__main__":
    sys.exit(main())
