"""Which kinds and sections of a config belong together: made from what the registries say of their kinds."""

from collections.abc import Mapping
from typing import Any

from ablatio.registry import kinds as _kinds  # noqa: F401  (registers them)
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import REGISTRIES, SCOPES, SESSION, Distribution, Registry

PLACES = ("out", "name", "trainer", "sweep")  # sections that make no number: where a run lies, and its machine
CHANCE = ("seed", "seeds")  # sections that make no arm: runs that differ in these alone repeat one another


def listed() -> list[Registry[Any]]:
    """The kinds that stand in the config of every new run, some of them with none, in the order of the config."""
    return sorted((r for r in REGISTRIES.values() if r.listed), key=lambda r: SCOPES.index(r.scope))


def needed() -> list[str]:
    """The kinds of which a config always has one option."""
    return [registry.kind for registry in listed() if not registry.optional]


def usual_parts() -> dict[str, str]:
    """The option of each kind that a new run has where it names none."""
    return {r.kind: r.usual for r in listed() if isinstance(r.usual, str) and r.usual}


def shaping() -> list[str]:
    """The kinds that decide what a model is: its parts, their weights and scales."""
    return [registry.kind for registry in REGISTRIES.values() if registry.shapes_model]


def volatile() -> tuple[str, ...]:
    """The sections and kinds of a config that make no number."""
    return (*PLACES, *(registry.kind for registry in REGISTRIES.values() if registry.volatile))


def without_unused(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the kinds of plugins that do nothing in it: it then is what it was before they came.

    So a run that uses nothing of a plugin can be read where that plugin is not installed.
    """

    def unused(registry: Registry[Any]) -> bool:
        foreign = registry.distribution not in (SESSION, Distribution(OURS, registry.distribution.version))
        return foreign and is_default(registry, config.get(registry.kind))

    return {k: v for k, v in config.items() if not (k in REGISTRIES and unused(REGISTRIES[k]))}


def is_default(registry: Registry[Any], node: Any) -> bool:
    """True if a config's node of this kind says what a config without the kind means."""
    return not registry.multiple and (node is None or isinstance(node, Mapping)) and registry.is_default(node)
