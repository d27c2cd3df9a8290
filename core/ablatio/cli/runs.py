"""`ablatio runs [FOLDER...]`: list, sort, filter and remove runs and studies."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser, refuse_other_flags

if TYPE_CHECKING:
    from ablatio.report.read.entries import Entry

EPILOG = """\
  ablatio runs --sort score                          the best runs first
  ablatio runs --filter norm=rmsnorm --filter state=done
  ablatio runs --filter state=failed --remove        asks before it deletes
  ablatio runs runs/2026-11-29_10-02-33 --remove"""

USES = {"without --remove": ("json",), "with --remove": ("yes",)}


def run(arguments: list[str]) -> int:
    """Run `ablatio runs` and return its exit code."""
    options = parser("runs", epilog=EPILOG)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument(
        "folders", type=Path, nargs="*", default=[Path("runs")], help="folders of runs, or single ones; by default runs"
    )
    options.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only those with this setting (norm=rmsnorm), state, kind or name; * stands for anything; repeatable",
    )  # fmt: skip
    options.add_argument(
        "--sort", default="time", metavar="KEY", help="time, name, kind, state, score, size or a setting"
    )
    options.add_argument("--reverse", action="store_true", help="reverse the order")
    options.add_argument("--remove", action="store_true", help="delete what is listed, after a question")
    options.add_argument("--yes", action="store_true", help="do not ask before deleting")
    options.add_argument("--json", action="store_true", help="print everything known about each as JSON")
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][args.remove])
    from ablatio.report.read.entries import entries_in, ordered

    # Before the first run the usual folder is missing, which is no mistake of the user.
    roots = [folder for folder in args.folders if folder.exists() or folder != Path("runs")]
    every = entries_in(roots)
    chosen = [e for e in every if all(e.fits(condition) for condition in args.filter)]
    chosen = ordered(chosen, args.sort, args.reverse)
    if args.remove:
        # Those beside the chosen ones too: a run that stays may need one that would be removed.
        return _remove(chosen, entries_in([*roots, *{e.folder.parent for e in chosen}]), args.yes)
    if args.json:
        print(json.dumps([_as_json(e) for e in chosen], indent=1))
    elif chosen:
        _show(chosen, args.sort)
    else:
        where = ", ".join(map(str, args.folders))
        print(f"no runs in {where}" + (" that fit " + " ".join(args.filter) if args.filter and every else ""))
    return 0


def _as_json(entry: "Entry") -> dict[str, object]:
    found = {"folder": entry.name, "kind": entry.kind, "state": entry.state, "score": entry.score}
    return found | {"score_name": entry.score_name, "bytes": entry.size, "time": entry.time, "settings": entry.settings}


def _show(entries: Sequence["Entry"], key: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.escape import terminal
    from ablatio.report.numbers import number, short
    from ablatio.report.read.entries import FIELDS

    table, own = Table(box=None, pad_edge=False), key not in FIELDS
    for name in ("name", "kind", "state", "score", *([key] if own else []), "size", "started"):
        right = name in ("score", "size")
        table.add_column(
            terminal(name), justify="right" if right else "left", overflow="fold", no_wrap=name == "started"
        )
    for e in entries:
        value = e.value(key) if own else None
        middle = ["" if value is None else terminal(value)] if own else []
        started = time.strftime("%m-%d %H:%M", time.localtime(e.time))
        table.add_row(
            terminal(e.name), e.kind, terminal(e.state), number(e.score), *middle, f"{short(e.size)}B", started
        )
    console = Console()
    console.print(table, highlight=False)
    total, n = sum(e.size for e in entries), len(entries)
    scores = sorted({e.score_name for e in entries if e.score_name})
    of = f"; score: {', '.join(scores)}" if scores else ""
    console.print(terminal(f"{n} {'entry' if n == 1 else 'entries'}, {short(total)}B{of}"), highlight=False)


def _remove(chosen: Sequence["Entry"], every: Sequence["Entry"], sure: bool) -> int:
    from ablatio.errors import UserError
    from ablatio.report.escape import visible
    from ablatio.report.numbers import short
    from ablatio.report.read.entries import refuse_removal, remove

    if not chosen:
        print("nothing to remove")
        return 0
    refuse_removal(chosen, every)
    for entry in chosen:
        print(f"{visible(entry.name)}  {entry.kind}, {entry.state}, {short(entry.size)}B")
    if not sure:
        if not sys.stdin.isatty():
            raise UserError(
                "--remove asks before it deletes, and there is no terminal to answer\n    try: --remove --yes"
            )
        if input(f"remove {len(chosen)}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 0
    for entry in chosen:
        remove(entry)
    print(f"removed {len(chosen)}, {short(sum(e.size for e in chosen))}B")
    return 0
