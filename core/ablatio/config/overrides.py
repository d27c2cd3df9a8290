"""Classify and check the overrides of a command line, `key=value` in Hydra's grammar."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Sweep
from hydra.errors import HydraException

from ablatio.config import presets, yaml_files
from ablatio.config import problems as config_problems
from ablatio.config import schema as run_config
from ablatio.config.hydra_habits import knobs_of, spelled
from ablatio.config.hydra_sources import groups
from ablatio.config.suggestions import unknown_key
from ablatio.config.words import key_of, quoted, with_quoted_schedules
from ablatio.errors import Problem
from ablatio.registry import per_layer, renamed
from ablatio.registry.parts_file import KEY as PARTS_FILE
from ablatio.registry.registry import REGISTRIES

ADDED = ("experiment", run_config.SWEEP)
NOT_BY_CONFIG = (
    "names a file of code, so only you may set it, as a word of the command: ablatio train parts=my_parts.py ... (in "
    "Python: ablatio.load_parts); no YAML file, recipe, study or run folder may"
)


def normal(override: str) -> str:
    """The override in Hydra's grammar: with the `+` that Hydra wants, and schedules in quotes."""
    return with_quoted_schedules(prefixed(override))


def prefixed(override: str) -> str:
    """Add or remove the `+` that Hydra wants: `experiment=x` becomes `+experiment=x`.

    `+` is added for groups and kinds that are in no config by default.  All other kinds are in every config, possibly
    as null: `+reward=x` becomes `reward=x`, and `reward=null` removes an option chosen in a file.
    """
    override = spelled(override)
    key, _, value = override.partition("=")
    if value == "null" and key in REGISTRIES and REGISTRIES[key].optional:
        return f"~{key}" if REGISTRIES[key].listed else override
    if (kind := key.removeprefix("+")) in REGISTRIES and REGISTRIES[kind].listed:
        return override.removeprefix("+")
    return f"+{override}" if key in ADDED or key in REGISTRIES else override


def classify_overrides(overrides: list[str]) -> tuple[list[str], list[tuple[str, Override]], list[Problem]]:
    """(valid choices of options, values, problems of the other choices)."""
    options, problems, chosen = groups(), list[Problem](), dict[str, str]()
    good, values = list[str](), list[tuple[str, Override]]()
    for text in overrides:
        if key_of(text).split(".")[0] == PARTS_FILE:
            problems.append(Problem(PARTS_FILE, NOT_BY_CONFIG))
            continue
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:  # the base class: the parser raises several types for a malformed override
            what = f"{text!r} is not a setting; write key=value, and quote special characters"
            problems.append(Problem(text, what, as_text(text)))
            continue
        if parsed.key_or_group in options and not parsed.is_delete():
            found = list(_group_problems(parsed, options, chosen))
            problems += found
            good += [] if found else [text]
        else:
            values.append((text, parsed))
    if not problems and (problem := presets.size_problem(chosen.get(yaml_files.SIZE), chosen.get(yaml_files.PRESET))):
        problems.append(problem)
        # Without its preset the size would leave model.d_model etc. open, and each would be reported as well.
        good = [text for text in good if not text.startswith(f"{yaml_files.SIZE}=")]
    return good, values, problems


def _group_problems(parsed: Override, options: dict[str, list[str]], chosen: dict[str, str]) -> Iterator[Problem]:
    group, value = parsed.key_or_group, parsed.value()
    multiple = group in REGISTRIES and REGISTRIES[group].multiple
    if parsed.is_sweep_override():
        # range(1,9) and glob(*) are no names that could stand in a list.
        plain = isinstance(value, ChoiceSweep) and value.simple_form
        together = f"{group}=[{_swept(parsed)}]" if multiple and plain else ""
        yield Problem(
            group, f"got several values ({_swept(parsed)}) for one run; -m runs one after the other", together
        )
        return
    if value is None and group in REGISTRIES and REGISTRIES[group].optional:
        return  # `peft=null`: none
    if value is None and group in (*ADDED, yaml_files.PRESET):
        yield Problem(group, f"no file is chosen unless {group}=NAME chooses one; leave it out")
        return
    if parsed.package is not None:
        yield Problem(parsed.input_line or group, f"a {group} has its own section of the config", f"{group}={value}")
        return
    names = value if isinstance(value, list) else [value]
    if any(isinstance(name, Sweep) for name in names):
        yield Problem(group, f"got {_swept(parsed)}; expected names of options", f"{group}=[{options[group][0]}]")
        return
    if value == [] and not multiple:
        known = REGISTRIES.get(group)
        usual = "" if known is None else "null" if known.optional else str(known.usual)
        yield Problem(group, f"got no option, a model has one {group}", f"{group}={usual}" if usual else "")
        return
    if isinstance(value, list) and not multiple:
        given = ", ".join(map(str, names))
        yield Problem(group, f"got {len(names)} options ({given}), a model has one {group}", f"{group}={names[0]}")
        return
    if group in chosen and not multiple:
        given = f"{chosen[group]} and {value}"
        yield Problem(group, f"got two options ({given}), a model has one {group}", f"{group}={value}")
        return
    chosen[group] = str(value)
    for name in names:
        if name not in options[group]:
            yield no_option(group, str(name), options[group])
        elif group == yaml_files.PRESET and (why := presets.broken().get(str(name))):
            yield Problem(group, f"{name} cannot be used: {why}")


def no_option(group: str, name: str, options: Collection[str]) -> Problem:
    """Problem of an option that does not exist; it names a local file of that name that is left out."""
    problem = config_problems.no_option(group, name, options)
    return replace(problem, what=problem.what + yaml_files.why_left_out(group, name))


def as_text(override: str) -> str:
    """The override with its value as one quoted text; empty if that is no setting either."""
    key, equals, value = override.partition("=")
    if not equals or value.startswith(("'", '"')):
        return ""
    fixed = f"{key}={quoted(value)}"
    try:
        parsed = OverridesParser.create().parse_override(fixed)
    except HydraException:
        return ""
    return fixed if parsed.value() is not None else ""


def _takes_text(key: str, tree: Any) -> bool:
    """True if the setting is a text now, or none: then several values may be one text with commas."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree is None or isinstance(tree, str)


def _swept(parsed: Override) -> str:
    return (parsed.input_line or "").split("=", 1)[-1]


def _knob_of_nothing(kind: str, key: str) -> Problem:
    """Problem of a knob set for a kind of which no option is chosen."""
    knob = key.partition(".")[2]
    has_it = [entry.name for entry in REGISTRIES[kind] if entry.knob(knob)]
    what = f"sets a knob, but no {kind} is chosen"
    if not has_it:
        return Problem(key, what)
    return Problem(key, f"{what}; it is a knob of {', '.join(has_it)}", f"{kind}={has_it[0]}")


def key_problem(parsed: Override, tree: Any, options: dict[str, list[str]]) -> Problem | None:
    """Problem of an override that sets a value: no such key, renamed, or a mapping for a list; None if it is fine.

    tree: the composed config; options: the options of each group
    """
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        what = f"got several values ({_swept(parsed)}) for one run; -m runs one after the other, quotes make one text"
        return Problem(key, what, as_text(parsed.input_line or "") if _takes_text(key, tree) else "")
    if parsed.is_add() or key.startswith("hydra"):
        return None
    if (now := renamed.key(key)) != key:
        return Problem(key, f"is now called {now}", f"{now}={parsed.get_value_element_as_str()}")
    node, path = tree, ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            if not path and part in REGISTRIES and not isinstance(node.get(part), dict):
                return _knob_of_nothing(part, key)
            if path in (per_layer.LAYERS, f"{per_layer.LAYERS}.{per_layer.AT}"):
                return per_layer.kind_problem(key, part)
            if having := _options_with(path, part):
                chosen = str(node.get("name"))
                nearest = max(having, key=lambda name: SequenceMatcher(None, name, chosen).ratio())
                what = f"there is no `{part}` in {path}={chosen}; it is a knob of {', '.join(having)}"
                return Problem(key, what, f"{path}={nearest}")
            return unknown_key(key, _swept(parsed), tree, options)
        node, path = node[part], f"{path}.{part}".lstrip(".")
    if isinstance(node, list) and isinstance(value := parsed.value(), dict):  # Hydra cannot put one for the other
        return next(
            (found for knob in knobs_of(key) for found in config_problems.value_problems(key, knob, value)), None
        )
    return None


def _options_with(kind: str, knob: str) -> list[str]:
    """Options of a single-choice kind that have this knob."""
    registry = REGISTRIES.get(kind)
    return [] if registry is None or registry.multiple else [e.name for e in registry if e.knob(knob)]
