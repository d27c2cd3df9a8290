"""What the user said, `key=value` by `key=value`, in Hydra's grammar: sorted and checked."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ablatio.config import presets, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.hydra_sources import groups
from ablatio.errors import Problem
from ablatio.registry import renamed
from ablatio.registry.registry import REGISTRIES

ADDED = ("experiment", run_config.SWEEP)


def normal(override: str) -> str:
    """`experiment=x` means `+experiment=x`: these groups, and kinds without a usual option, stand in no config before.

    All other kinds stand in it, if only as null: `+reward=x` means `reward=x`, and `reward=null` takes away what a file
    chose.
    """
    key, _, value = override.partition("=")
    if value == "null" and key in REGISTRIES and REGISTRIES[key].optional:
        return f"~{key}" if REGISTRIES[key].listed else override
    if (kind := key.removeprefix("+")) in REGISTRIES and REGISTRIES[kind].listed:
        return override.removeprefix("+")
    return f"+{override}" if key in ADDED or key in REGISTRIES else override


def classify_overrides(overrides: list[str]) -> tuple[list[str], list[tuple[str, Override]], list[Problem]]:
    """(choices of options that can be made, values, what is wrong with the other choices)."""
    options, problems, chosen = groups(), list[Problem](), dict[str, str]()
    good, values = list[str](), list[tuple[str, Override]]()
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:  # a bad override, in one of the ways that the parser has to say so
            problems.append(Problem(text, f"{text!r} is no setting; write key=value, and quote special characters"))
            continue
        if parsed.key_or_group in options and not parsed.is_delete():
            found = list(_group_problems(parsed, options, chosen))
            problems += found
            good += [] if found else [text]
        else:
            values.append((text, parsed))
    if not problems and (problem := presets.size_problem(chosen.get(yaml_files.SIZE), chosen.get(yaml_files.PRESET))):
        problems.append(problem)
        good = [
            text for text in good if not text.startswith(f"{yaml_files.SIZE}=")
        ]  # else its open sizes are blamed too
    return good, values, problems


def _group_problems(parsed: Override, options: dict[str, list[str]], chosen: dict[str, str]) -> Iterator[Problem]:
    group, value = parsed.key_or_group, parsed.value()
    if parsed.is_sweep_override():
        yield Problem(group, f"several values came: {_swept(parsed)}; -m runs one after the other")
        return
    multiple = group in REGISTRIES and REGISTRIES[group].multiple
    if value is None and group in REGISTRIES and REGISTRIES[group].optional:
        return  # `peft=null`: none
    names = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not multiple:
        came = ", ".join(map(str, names))
        yield Problem(group, f"{len(names)} options came ({came}), a model has one {group}", f"{group}={names[0]}")
        return
    if group in chosen and not multiple:
        came = f"{chosen[group]} and {value}"
        yield Problem(group, f"two options came ({came}), a model has one {group}", f"{group}={value}")
        return
    chosen[group] = str(value)
    for name in names:
        if name not in options[group]:
            yield run_config.no_option(group, str(name), options[group])


def _swept(parsed: Override) -> str:
    return (parsed.input_line or "").split("=", 1)[-1]


def _knob_of_nothing(kind: str, key: str) -> Problem:
    """A knob was set of a kind of which no option is chosen."""
    knob = key.partition(".")[2]
    has_it = [entry.name for entry in REGISTRIES[kind] if entry.knob(knob)]
    what = f"no {kind} is chosen, of which this could be a knob"
    return Problem(key, f"{what}; {', '.join(has_it)} have it", f"{kind}={has_it[0]}") if has_it else Problem(key, what)


def key_problem(parsed: Override, tree: Any, options: dict[str, list[str]]) -> Problem | None:
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        return Problem(
            key, f"several values came: {_swept(parsed)}; -m runs one after the other, quotes make one text of them"
        )
    if parsed.is_add() or key.startswith("hydra"):
        return None
    if (now := renamed.key(key)) != key:
        return Problem(key, f"is now called {now}", f"{now}={parsed.get_value_element_as_str()}")
    node, path = tree, ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            if not path and part in REGISTRIES and not isinstance(node.get(part), dict):
                return _knob_of_nothing(part, key)
            known = [k for k in (node if isinstance(node, dict) else {}) if k not in ("hydra", "name")]
            if not path:
                known += [g for g in options if "/" not in g]
            if having := _options_with(path, part):
                chosen = str(node.get("name"))
                nearest = max(having, key=lambda name: SequenceMatcher(None, name, chosen).ratio())
                what = f"there is no `{part}` in {path}={chosen}; it is a knob of {', '.join(having)}"
                return Problem(key, what, f"{path}={nearest}")
            problem = run_config.unknown(key, part, known, prefix=f"{path}.".lstrip("."))
            return Problem(
                key, problem.what, f"{problem.fix}={parsed.get_value_element_as_str()}" if problem.fix else ""
            )
        node, path = node[part], f"{path}.{part}".lstrip(".")
    return None


def _options_with(kind: str, knob: str) -> list[str]:
    """The options of a kind, where it has one at a time, that have this knob."""
    registry = REGISTRIES.get(kind)
    return [] if registry is None or registry.multiple else [e.name for e in registry if e.knob(knob)]
