"""`ablatio list [KIND]`: every option, from the catalogue and the YAML files alone; no plugin is imported."""

import json
import sys
from collections.abc import Mapping

from ablatio.api.parts import check_kind
from ablatio.cli.commands import parser
from ablatio.config import presets, yaml_files
from ablatio.registry import discovery
from ablatio.registry.oracles import checked_against
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry


def run(arguments: list[str]) -> int:
    options = parser("list")
    options.add_argument("kind", nargs="?", help="norm, position, optimizer, preset, size ...; by default all")
    options.add_argument("--json", action="store_true", help="everything that is known, for programs")
    asked = options.parse_args(arguments)
    check_kind(asked.kind)
    files = yaml_files.files()
    kinds = [r for kind, r in REGISTRIES.items() if asked.kind in (None, kind)]
    groups = {group: options for group, options in files.items() if asked.kind in (None, group)}
    if asked.json:
        parts = {r.kind: {e.name: _part_json(e) for e in r} for r in kinds}
        print(json.dumps(parts | {g: {n: _file_json(f) for n, f in o.items()} for g, o in groups.items()}, indent=1))
    else:
        print_kinds(kinds)
        print_files(groups)
    for failure in discovery.failures():
        print(f"ablatio: {failure}", file=sys.stderr)
    return 0


def _part_json(entry: PartSpec) -> dict[str, object]:
    return entry.to_json() | {"oracles": list(checked_against(entry))}


def _file_json(file: yaml_files.File) -> dict[str, object]:
    if file.group != yaml_files.PRESET:
        return file.to_json()
    preset = presets.load(file)
    return file.to_json() | {"paper": preset.paper, "parts": preset.parts, "sizes": [*preset.sizes]}


def print_kinds(kinds: list[Registry[PartSpec]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for registry in kinds:
        table = Table(title=f"{registry.kind}=  {escape(registry.doc)}", title_justify="left", box=None, pad_edge=False)
        for column in ("option", "knobs", "what it does", "checked against", "from"):
            table.add_column(column, overflow="fold", style="bold" if column == "option" else "")
        for entry in registry:
            knobs = ", ".join(k.name for k in entry.knobs)
            oracles = "; ".join(checked_against(entry))
            cells = (knobs, entry.summary, oracles, str(entry.distribution))
            table.add_row(entry.name, *map(escape, cells))
        console.print(table)
        console.print()


def print_files(groups: Mapping[str, Mapping[str, yaml_files.File]]) -> None:
    """The options that are YAML files, each with the first line of its comment."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for group, files in groups.items():
        table = Table(title=f"{group}=", title_justify="left", box=None, pad_edge=False)
        for column in ("option", *(["sizes"] if group == yaml_files.PRESET else []), "what it is", "from"):
            table.add_column(column, overflow="fold", style="bold" if column == "option" else "")
        for file in files.values():
            sizes = [" ".join(presets.load(file).sizes)] if group == yaml_files.PRESET else []
            table.add_row(file.name, *sizes, escape(file.summary), escape(str(file.distribution)))
        console.print(table)
        console.print()
