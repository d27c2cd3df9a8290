"""`ablatio list [KIND]`: list all options from the catalogue and the YAML files, without importing plugins."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping

from ablatio.api.parts import check_kind
from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.config import presets, techniques, yaml_files
from ablatio.registry import discovery
from ablatio.registry.oracles import checked_against
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.storage.paths import shell_word

MIN_WIDTH, MAX_WIDTH = 40, 120  # columns of a line: longer ones are hard to read
MAX_NAME = 24  # columns for the names; a longer name gets its own line

USES = {"without --json": ("verbose",), "with --json, which prints everything": ()}


def run(arguments: list[str]) -> int:
    """Run `ablatio list` and return its exit code."""
    options = parser("list")
    options.add_argument("kind", nargs="?", help="norm, position, optimizer, preset, size ...; by default all")
    options.add_argument("-v", "--verbose", action="store_true", help="print knobs, oracles and whole summaries too")
    options.add_argument("--json", action="store_true", help="print everything known about each option as JSON")
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][args.json])
    check_kind(args.kind)
    files = yaml_files.files()
    kinds = [r for kind, r in REGISTRIES.items() if args.kind in (None, kind)]
    groups = {group: _usable(group, options) for group, options in files.items() if args.kind in (None, group)}
    if args.json:
        named = techniques.by_part()
        parts = {r.kind: {e.name: _part_json(e, named) for e in r} for r in kinds}
        print(json.dumps(parts | {g: {n: _file_json(f) for n, f in o.items()} for g, o in groups.items()}, indent=1))
    else:
        print_kinds(kinds, args.verbose)
        print_files(groups, args.verbose)
    for failure in discovery.failures():
        print(f"ablatio: {failure}", file=sys.stderr)
    for name, why in (presets.broken() if yaml_files.PRESET in groups else {}).items():
        print(f"ablatio: {yaml_files.PRESET}={name} is left out: {why}", file=sys.stderr)
    for file in yaml_files.left_out():
        if args.kind in (None, file.group):
            print(f"ablatio: {file}", file=sys.stderr)
    return 0


def _part_json(entry: PartSpec, named: Mapping[str, list[str]]) -> dict[str, object]:
    listed = named.get(f"{entry.kind}={entry.name}", [])
    return entry.to_json() | {"oracles": list(checked_against(entry)), "techniques": listed}


def _usable(group: str, options: Mapping[str, yaml_files.File]) -> Mapping[str, yaml_files.File]:
    """The options of a group without presets that cannot be used."""
    broken = presets.broken() if group == yaml_files.PRESET else {}
    return {name: file for name, file in options.items() if name not in broken}


def _file_json(file: yaml_files.File) -> dict[str, object]:
    if file.group == techniques.GROUP:
        return file.to_json() | {"techniques": [t.to_json() for t in techniques.areas()[file.name]]}
    if file.group != yaml_files.PRESET:
        return file.to_json()
    preset = presets.presets()[file.name]
    return file.to_json() | {"paper": preset.paper, "parts": preset.parts, "sizes": [*preset.sizes]}


def print_kinds(kinds: list[Registry[PartSpec]], verbose: bool = False) -> None:
    """Print the parts of each kind, a line for each: name, what it does, distribution if it is not the usual one.

    verbose  whole summaries, knobs, and oracles that the part agreed with
    """
    for registry in kinds:
        usual = next((entry.distribution for entry in registry), registry.distribution)
        options = {
            entry.name: [
                entry.summary,
                _field("knobs", ", ".join(knob.name for knob in entry.knobs)),
                _field("checked against", "; ".join(checked_against(entry))),
                _field("from", str(entry.distribution) if entry.distribution != usual else ""),
            ]
            for entry in registry
        }
        _print_group(f"{registry.kind}= {registry.doc} (from {usual} unless stated)", options, verbose)


def print_files(groups: Mapping[str, Mapping[str, yaml_files.File]], verbose: bool = False) -> None:
    """Print the options that are YAML files: name, first line of the comment, distribution; `verbose`: sizes too."""
    for group, files in groups.items():
        if group == techniques.GROUP:
            _print_techniques(files, verbose or len(groups) == 1)
            continue
        usual = next(iter(files.values())).distribution if files else ""
        options = {
            name: [
                file.summary,
                _field("sizes", " ".join(presets.presets()[name].sizes) if group == yaml_files.PRESET else ""),
                _field("from", str(file.distribution) if file.distribution != usual else ""),
            ]
            for name, file in files.items()
        }
        _print_group(f"{group}= (from {usual} unless stated)", options, verbose)


def _print_techniques(files: Mapping[str, yaml_files.File], whole: bool) -> None:
    """Print the areas of techniques with how many are there; `whole`: with what chooses each technique."""
    for area, found in techniques.areas().items():
        there = sum(not t.refused for t in found)
        title = f"{techniques.GROUP}={area} {there} of {len(found)} can be chosen: {files[area].summary}"
        _print_group(title, {t.name: [_how(t)] for t in found} if whole else {}, verbose=True)


def _how(technique: techniques.Technique) -> str:
    """Return the settings or the command that choose a technique, or the reason why it cannot be chosen."""
    if technique.refused:
        return f"not here: {technique.refused}"
    return technique.command or " ".join(map(shell_word, technique.overrides))


def _field(name: str, value: str) -> str:
    return f"{name}: {value}" if value else ""


def _print_group(title: str, options: Mapping[str, list[str]], verbose: bool) -> None:
    """Print a title, then each option's name beside its text; not with rich, which takes 0.3 s for this.

    The first text is the summary.  Without `verbose` it is cut to one line, with the distribution if that is stated.
    """
    width = max(MIN_WIDTH, min(shutil.get_terminal_size().columns, MAX_WIDTH))
    indent = min(MAX_NAME, max(map(len, options), default=0)) + 2
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = list(_wrap(title, width))
    for name, texts in options.items():
        left = f"\x1b[1m{name}\x1b[0m" if styled else name
        room = width - max(indent, len(name) + 2)
        body = [line for text in texts for line in _wrap(text, width - indent)] if verbose else [_brief(texts, room)]
        if not verbose:
            lines.append(left + " " * max(2, indent - len(name)) + body.pop(0))
        elif len(name) + 2 > indent:
            lines.append(left)
        elif body:
            lines.append(left + " " * (indent - len(name)) + body.pop(0))
        lines += [" " * indent + line for line in body]
    print("\n".join(lines), end="\n\n")


def _brief(texts: list[str], room: int) -> str:
    """The summary in `room` characters, before the distribution that provides the option."""
    source = next((f" [{text}]" for text in texts[1:] if text.startswith("from: ")), "")
    summary, room = texts[0], max(MIN_WIDTH // 2, room - len(source))
    return (
        summary if len(summary) <= room else summary[: room - 3].rpartition(" ")[0].rstrip(" ,;:(.") + " ..."
    ) + source


def _wrap(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` characters, broken between words; a longer word is broken inside."""
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while len(line) > width:
            yield line[:width]
            line = line[width:]
    if line:
        yield line
