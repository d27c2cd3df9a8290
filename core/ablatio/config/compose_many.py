"""Configs of many arms: Hydra composes their common frame once; each arm's parts and values are merged into it.

Composing an arm through Hydra costs 0.24 s, so a thousand arms would take four minutes.  A part from a registry and a
plain value of a known key mean the same in every arm.  Everything else (presets, sizes, YAML groups, several options
of one kind) is a *frame*, composed by Hydra once for all arms that share it.  In a frame, each kind that an arm
chooses is left open: Hydra composes it with an option without knobs, so what presets and studies set for this kind
shows up whichever option is chosen.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from ablatio.config import compose, kind_lists, presets, yaml_files
from ablatio.config.compose import Composed
from ablatio.config.grammar import parse
from ablatio.config.hydra_sources import OPEN
from ablatio.config.inherit import Coming
from ablatio.config.overrides import prefixed
from ablatio.errors import ConfigError, Problem
from ablatio.registry.registry import REGISTRIES


@dataclass(frozen=True, slots=True)
class Frame:
    """The config composed from the overrides that arms share, with the chosen kinds left open."""

    tree: Mapping[str, Any]
    preset: presets.Preset | None
    size: str
    interpolated: bool

    def part(self, kind: str, name: str) -> dict[str, Any]:
        """Section of a kind for the option `name`: its defaults, then the preset's values, then later overrides."""
        theirs = self.preset.values({yaml_files.SIZE: self.size, kind: name}).get(kind) or {} if self.preset else {}
        over = {k: v for k, v in self.tree[kind].items() if k != "name"}
        return {"name": name} | REGISTRIES[kind].entries[name].defaults | dict(theirs) | over


class Composer:
    """Composes arms and caches their frames: an arm that differs only in parts and values costs a millisecond."""

    def __init__(self) -> None:
        self.interpolated = False  # True once a value of some frame refers to another
        self._errors: dict[tuple[tuple[str, str, str], ...], list[Problem]] = {}
        self._frames: dict[tuple[tuple[str, ...], tuple[str, ...]], Frame | None] = {}

    def compose(self, overrides: Sequence[str], coming: Coming = MappingProxyType({})) -> Composed:
        """Same result as `compose_run` for these arguments; raises ConfigError with all problems at once."""
        yaml_files.take_in(overrides)
        with yaml_files.read_once():
            return self._compose(overrides, coming)

    def _compose(self, overrides: Sequence[str], coming: Coming) -> Composed:
        tree = self.tree(overrides, coming)
        if tree is None:
            return compose.compose_run(overrides, coming)
        node, interpolated = tree
        slim = kind_lists.without_equal_layers(kind_lists.without_unused(node))
        public, resolved = compose.plain(OmegaConf.create(node)) if interpolated else (slim, slim)
        config, problems = compose.checked(resolved, overrides)
        if problems:
            raise self._error(compose.with_origin(problems, overrides), overrides, coming)
        return Composed(config, compose.with_budget(public, config), list(overrides), interpolated)

    def _error(self, problems: list[Problem], overrides: Sequence[str], coming: Coming) -> ConfigError:
        """The error of an arm; which fixes compose is found once for all arms with the same problems.

        With runs to start from it is found for each arm, since a fix may compose with one of them alone.
        """
        if coming:
            return compose.config_error(problems, [prefixed(o) for o in overrides], coming)
        key = tuple((p.where, p.what, p.fix) for p in problems)
        if key not in self._errors:
            self._errors[key] = compose.config_error(problems, [prefixed(o) for o in overrides]).problems
        return ConfigError(self._errors[key])

    def tree(
        self, overrides: Sequence[str], coming: Coming = MappingProxyType({})
    ) -> tuple[dict[str, Any], bool] | None:
        """(the config before interpolations are resolved, True if it has any); None if only Hydra can compose it."""
        framing, parts, values = list[str](), dict[str, Any](), list[tuple[str, Any]]()
        for text in compose.cleaned(overrides, coming):
            parsed = parse(text)
            if parsed is None:
                return None
            if is_part(parsed):
                # One kind with two options is refused by Hydra's path, with its message.
                if parts.get(parsed.key_or_group, parsed.value()) != parsed.value():
                    return None
                parts[parsed.key_or_group] = parsed.value()
            elif is_value(parsed):
                values.append((parsed.key_or_group, parsed.value()))
            else:
                framing.append(text)
        # Sorted: the same kinds in another order share a frame.
        frame = self._frame(tuple(framing), tuple(sorted(parts)))
        if frame is None:
            return None
        node = {key: _copy(value) for key, value in frame.tree.items() if key not in parts}
        for kind, name in parts.items():
            node[kind] = frame.part(kind, name)
        for key, value in values:
            if not put(node, key, value):
                return None
        return node, frame.interpolated

    def _frame(self, framing: tuple[str, ...], kinds: tuple[str, ...]) -> Frame | None:
        if (framing, kinds) not in self._frames:
            frame = _compose_frame([*framing, *(f"{kind}={OPEN}" for kind in kinds)])
            self._frames[framing, kinds] = frame
            self.interpolated |= frame is None or frame.interpolated
        return self._frames[framing, kinds]


def _compose_frame(overrides: list[str]) -> Frame | None:
    node = compose.try_compose(overrides)
    if node is None:
        return None
    compose.refuse_hydra_settings(node)
    choices = {str(group): str(name) for group, name in node.hydra.runtime.choices.items() if name is not None}
    preset, size = choices.get(yaml_files.PRESET), choices.get(yaml_files.SIZE, "")
    if presets.size_problem(size, preset):
        return None
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    tree: Any = OmegaConf.to_container(node, resolve=False)
    return Frame(tree, presets.presets().get(preset or ""), size, "${" in repr(tree))


def is_part(parsed: Override) -> bool:
    """True if the override chooses a registered option of a kind that every run has."""
    kind, name = parsed.key_or_group, parsed.value()
    return (
        kind in kind_lists.needed()
        and not REGISTRIES[kind].multiple
        and parsed.type is OverrideType.CHANGE
        and parsed.package is None
        and isinstance(name, str)
        and name in REGISTRIES[kind].entries
    )


def is_value(parsed: Override) -> bool:
    """True if the override sets a known key to a plain value."""
    key = parsed.key_or_group
    return (
        parsed.type is OverrideType.CHANGE
        and "/" not in key
        and not key.startswith("hydra")
        # It chooses a part, and with it other knobs.
        and not key.endswith(".name")
        and key not in _group_names()
        and _is_plain(parsed.value())
    )


@functools.cache
def _group_names() -> frozenset[str]:
    from ablatio.config.hydra_sources import groups

    return frozenset(groups())


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    if isinstance(value, str):
        return "${" not in value  # an interpolation, or an escaped one: OmegaConf alone resolves it
    return isinstance(value, bool | int | float | None)


def _copy(value: Any) -> Any:
    """Copy of the dicts only: values are replaced, never modified in place."""
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def put(node: dict[str, Any], key: str, value: Any) -> bool:
    """Set an existing key; returns False if it does not exist."""
    *path, last = key.split(".")
    for step in path:
        node = node.get(step)  # type: ignore[assignment]
        if not isinstance(node, dict):
            return False
    if last not in node or isinstance(node[last], dict):
        return False
    node[last] = value
    return True


def has(node: Mapping[str, Any], key: str) -> bool:
    """True if the config has this key."""
    found: Any = node
    for step in key.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return False
        found = found[step]
    return True
