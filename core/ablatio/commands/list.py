"""`ablatio list [KIND]`: every option, from the catalogue alone; no plugin is imported."""

import json
import sys

from ablatio import plugins
from ablatio.commands import parser
from ablatio.errors import UserError
from ablatio.knobs import did_you_mean
from ablatio.registry import REGISTRIES, Entry, Registry


def run(arguments: list[str]) -> int:
    options = parser("list")
    options.add_argument("kind", nargs="?", help="norm, position, optimizer ...; by default all")
    options.add_argument("--json", action="store_true", help="everything that is known, for programs")
    asked = options.parse_args(arguments)
    plugins.load()
    if asked.kind and asked.kind not in REGISTRIES:
        near = did_you_mean(asked.kind, REGISTRIES)
        raise UserError(f"there is no kind `{asked.kind}`{near}\n    there are {', '.join(sorted(REGISTRIES))}")
    kinds = [REGISTRIES[asked.kind]] if asked.kind else list(REGISTRIES.values())
    if asked.json:
        print(json.dumps({r.kind: {e.name: e.to_json() for e in r} for r in kinds}, indent=1))
    else:
        _print(kinds)
    for failure in plugins.failures():
        print(f"ablatio: {failure}", file=sys.stderr)
    return 0


def _print(kinds: list[Registry[Entry]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for registry in kinds:
        table = Table(title=f"{registry.kind}=  {escape(registry.doc)}", title_justify="left", box=None, pad_edge=False)
        for column in ("option", "knobs", "what it does", "from"):
            table.add_column(column, overflow="fold", style="bold" if column == "option" else "")
        for entry in registry:
            knobs = ", ".join(k.name for k in entry.knobs)
            table.add_row(entry.name, escape(knobs), escape(entry.summary), escape(str(entry.provider)))
        console.print(table)
        console.print()
