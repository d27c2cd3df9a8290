"""The command line: `ablatio COMMAND ...`.  Errors come without a traceback, with the exit codes of `errors`."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from ablatio.cli.commands import COMMANDS
from ablatio.errors import AblatioError

HELP = """\
ablatio asks what one part of a language model, or of its training, contributes.

  ablatio train                                        the default model on the embedded corpus, 4 minutes
  ablatio train norm=layernorm position=alibi seed=2   parts and settings by name
  ablatio train -m norm=layernorm,rmsnorm seed=1,2,3   a sweep: all combinations
  ablatio train -m +sweep=position_extrapolation       a study from sweeps/
  ablatio train resume=runs/NAME                       continue an interrupted run, bit for bit

commands:
{commands}

`ablatio COMMAND --help` says more.  Exit codes: 0 done, 2 your input, 3 some runs of a sweep failed,
4 diverged, 5 the machine (disk, permission), 75 interrupted and resumable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Before torch is imported: OpenMP's threads spin while they wait, and when another program wants the cores too, a
    # step of the default model takes 3.5 s instead of 0.1 s.  Threads that sleep lose little on a quiet machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Whether there is a GPU is asked without starting CUDA: a sweep forks its runs from a process that has asked.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Imports make a million objects that stay; to look for garbage among them again and again is a quarter of their
    # time, 1.2 of 5 s.
    gc.set_threshold(10_000, 10, 10)
    try:
        return _dispatch(words)
    except AblatioError as error:
        print(f"ablatio: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `ablatio list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        from ablatio import __version__

        print(f"ablatio {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command == "__complete":
        from ablatio.cli import completion

        return completion.answer(rest)
    if command not in COMMANDS:
        from ablatio.errors import did_you_mean

        print(f"ablatio: there is no command `{command}`{did_you_mean(command, COMMANDS)}", file=sys.stderr)
        print("    try: ablatio --help", file=sys.stderr)
        return 2
    module = importlib.import_module(f"ablatio.cli.{command.replace('-', '_')}")
    run = module.run
    return int(run(rest))


if __name__ == "__main__":
    sys.exit(main())
