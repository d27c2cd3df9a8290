"""Tab completion from the catalogue, without importing torch or Hydra: about 0.1 s for each key press.

`ablatio completion bash` prints code for the shell to evaluate; the shell then calls `ablatio __complete WORD ...`.
"""

import argparse
from pathlib import Path

from ablatio.cli.commands import COMMANDS, arguments_of, parser
from ablatio.cli.given_files import config_dir, taken_folder
from ablatio.config import kind_lists, presets, schema, yaml_files
from ablatio.config.local_files import SUFFIXES
from ablatio.errors import UserError
from ablatio.registry import discovery, per_layer
from ablatio.registry.parts_file import KEY as PARTS_FILE
from ablatio.registry.per_layer import AT, LAYERS
from ablatio.registry.registry import REGISTRIES

BASH = """\
_ablatio() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    local words; IFS=' ' read -r -a words <<< "$line"; [[ "$line" == *" " ]] && words+=("")
    local cur="${words[${#words[@]}-1]}"
    COMPREPLY=($(ablatio __complete "${words[@]:1}" 2>/dev/null))
    # readline splits words at = and :, so only the text after the last of them is replaced
    local head="${cur%"${cur##*[=:]}"}"
    [[ -n "$head" ]] && COMPREPLY=("${COMPREPLY[@]#"$head"}")
    [[ "${COMPREPLY[0]}" == *[=./] ]] && compopt -o nospace
}
complete -o default -F _ablatio ablatio
"""
ZSH = """\
_ablatio() {
    local -a found open whole
    found=("${(@f)$(ablatio __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then
        open=(${(M)found:#*[=.]})
        whole=(${found:#*[=.]})
        (( $#open )) && compadd -Q -S '' -- $open
        (( $#whole )) && compadd -Q -- $whole
        return 0
    fi
    compset -P '*='
    _files
}
compdef _ablatio ablatio
"""
FISH = """\
function __ablatio_complete
    set -l token (commandline -ct)
    set -l words (commandline -opc)
    set -e words[1]
    set -l found (ablatio __complete $words "$token" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
        return
    end
    set -l head (string match -r '^.*=' -- "$token")
    for path in (__fish_complete_path (string replace -r '^.*=' '' -- "$token"))
        echo "$head$path"
    end
end
complete -c ablatio -f -a '(__ablatio_complete)'
"""
SETTINGS = ("train", "size", "coordinates", "prepare")  # commands whose words are settings
OWN_FLAGS = {  # of commands that read their words themselves
    "train": ("-m", "--multirun", "--help", "--cfg", "--info", "--hydra-help", "--config-dir"),
    "resume": ("--help",),
}
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run(arguments: list[str]) -> int:
    """Run `ablatio completion` and return its exit code."""
    epilog = 'bash, zsh: eval "$(ablatio completion bash)"; fish: ablatio completion fish | source'
    options = parser("completion", epilog=epilog)
    options.add_argument("shell", choices=sorted(SHELLS))
    print(SHELLS[options.parse_args(arguments).shell], end="")
    return 0


def answer(words: list[str]) -> int:
    """Print the completions of the last word.  No file of parts is executed for them."""
    discovery.load()
    try:
        folder, before = taken_folder(words[:-1])
        with config_dir(folder):
            found = candidates([*before, *words[-1:]])
    except UserError:  # a folder that is not there: the command itself says so
        found = candidates(words)
    print("\n".join(found), end="\n" if found else "")
    return 0


def candidates(words: list[str]) -> list[str]:
    """Completions of the last of `words`, those after `ablatio`; if there are none, the shell completes files."""
    words = words or [""]
    last, before = words[-1], words[:-1]
    if not before:
        return [c for c in COMMANDS if c.startswith(last)]
    command = before[0]
    if command not in COMMANDS:
        return []
    if last.startswith("-") or _flag(command, before[-1]) is not None:
        return sorted(c for c in _flags(command, before) if c.startswith(last))
    if command == "list":
        found = [*REGISTRIES, *yaml_files.files()]
    elif command == "show":
        found = [f"{kind}={e.name}" for kind, r in REGISTRIES.items() for e in r] + [*schema.SECTIONS, LAYERS, "run"]
        found += [f"{group}={name}" for group, files in yaml_files.files().items() for name in files]
    elif command in SETTINGS:
        found = _settings(last, before[1:])
    elif command == "check":
        found = sorted({s.distribution.name for s in discovery.sources()})
    elif command == "completion":
        found = list(SHELLS)
    else:
        found = []
    return sorted(c for c in found if c.startswith(last))


def _flag(command: str, word: str) -> argparse.Action | None:
    """The flag of a command that `word` is, if the next word is its value."""
    if command in OWN_FLAGS or not word.startswith("-"):
        return None
    return next((a for a in arguments_of(command) if word in a.option_strings and a.nargs != 0), None)


def _flags(command: str, before: list[str]) -> list[str]:
    """The values of the flag that came last, or the flags of a command."""
    if (asked := _flag(command, before[-1])) is not None:
        return [str(choice) for choice in asked.choices or ()]
    if command in OWN_FLAGS:
        return list(OWN_FLAGS[command])
    return [flag for action in arguments_of(command) for flag in action.option_strings if flag.startswith("--")]


def _settings(last: str, before: list[str]) -> list[str]:
    key, equals, value = last.partition("=")
    if equals and (key == PARTS_FILE or ("/" in value and key.lstrip("+") in yaml_files.files())):
        return _paths(f"{key}=", value, (".py",) if key == PARTS_FILE else SUFFIXES)
    if equals:
        # The shell replaces the whole word, so each candidate repeats what stands before the last comma.
        head = f"{key}=" + (f"{value.rpartition(',')[0]}," if "," in value else "")
        if (kind := key.removeprefix(f"{LAYERS}.")) != key:  # a list, whose first option follows `[`
            return [f"{head}{'' if ',' in value else '['}{v}" for v in _values(kind, before)]
        return [head + v for v in _values(key, before)]
    chosen = kind_lists.usual_parts() | {w.split("=")[0]: w.split("=")[1] for w in before if w.count("=") == 1}
    top = [f"{k.name}=" for k in schema.section_knobs(schema.Run)] + ["resume=", f"{PARTS_FILE}="]
    if "." not in last:
        return [
            *(f"{kind}=" for kind in [*REGISTRIES, *yaml_files.files()]),
            *(f"{s}." for s in [*schema.SECTIONS, LAYERS, *REGISTRIES]),
            *top,
        ]
    section = key.split(".")[0]
    if section in schema.SECTIONS:
        return [f"{section}.{k.name}=" for k in schema.section_knobs(schema.SECTIONS[section])]
    if section == LAYERS:
        return [f"{LAYERS}.{form}{r.kind}=" for form in ("", f"{AT}.") for r in per_layer.kinds()]
    registry = REGISTRIES.get(section)
    if registry is None:
        return []
    if registry.multiple:
        return [f"{section}.{e.name}.{k.name}=" for e in registry for k in e.knobs]
    # Without a known choice, such as one that is still being typed, the knobs of all options are offered.
    options = [o for o in chosen.get(section, "").split(",") if o in registry.entries] or list(registry.entries)
    return list(dict.fromkeys(f"{section}.{k.name}=" for o in options for k in registry.entries[o].knobs))


def _paths(head: str, value: str, suffixes: tuple[str, ...]) -> list[str]:
    """Folders, and files with one of the suffixes, whose paths begin with `value`."""
    start = value[: value.rfind("/") + 1]
    try:
        inside = sorted(Path(start or ".").expanduser().iterdir())
    except OSError:
        return []
    shown = [p for p in inside if not p.name.startswith(".") and (p.is_dir() or p.suffix in suffixes)]
    return [f"{head}{start}{p.name}{'/' if p.is_dir() else ''}" for p in shown]


def _values(key: str, before: list[str]) -> list[str]:
    if key in REGISTRIES:
        return list(REGISTRIES[key].entries)
    if files := yaml_files.options_of(key.lstrip("+")):
        chosen = {w.split("=")[1] for w in before if w.startswith(f"{yaml_files.PRESET}=")}
        own = [s for s, names in presets.sizes().items() if chosen & set(names)] if key == yaml_files.SIZE else []
        return [*files, *own]
    section, _, name = key.rpartition(".")
    knobs = (
        schema.section_knobs(schema.SECTIONS.get(section, schema.Run))
        if not section or section in schema.SECTIONS
        else ()
    )
    if section in REGISTRIES:
        knobs = tuple(k for e in REGISTRIES[section] for k in e.knobs)
    for knob in knobs:
        if knob.name != name:
            continue
        if knob.option_of in REGISTRIES:
            return knob.named(REGISTRIES[knob.option_of].entries)
        if knob.choices or knob.type == "bool":
            return [str(c) for c in knob.choices or ("true", "false")]
    return []
