"""Lists of kinds and config sections, derived from what each Registry declares."""

from collections.abc import Mapping
from typing import Any

from ablatio.registry import kinds as _kinds  # noqa: F401  (registers them)
from ablatio.registry import per_layer
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import REGISTRIES, SCOPES, SESSION, Distribution, Registry

PLACES = ("out", "name", "trainer", "sweep")  # sections without effect on the numbers: folders and the machine
CHANCE = ("seed", "seeds")  # runs that differ only in these are repetitions


def listed() -> list[Registry[Any]]:
    """Kinds in the config of every new run (possibly with no option chosen), in config order."""
    return sorted((r for r in REGISTRIES.values() if r.listed), key=lambda r: SCOPES.index(r.scope))


def needed() -> list[str]:
    """Kinds for which every config has an option."""
    return [registry.kind for registry in listed() if not registry.optional]


def usual_parts() -> dict[str, str]:
    """Default option of each kind for a new run."""
    return {r.kind: r.usual for r in listed() if isinstance(r.usual, str) and r.usual}


def shaping() -> list[str]:
    """Kinds that determine a model: its parts, weights and scales."""
    return [registry.kind for registry in REGISTRIES.values() if registry.shapes_model]


def model_keys() -> tuple[str, ...]:
    """Keys of a config that determine a model."""
    return (*shaping(), "model", "match", per_layer.LAYERS)


def volatile() -> tuple[str, ...]:
    """Sections and kinds that do not affect any number."""
    return (*PLACES, *(registry.kind for registry in REGISTRIES.values() if registry.volatile))


def without_unused(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the kinds of plugins that have no effect in this config: it equals the config without the plugin.

    So a run that uses nothing of a plugin can be read where that plugin is not installed.
    """

    def unused(registry: Registry[Any]) -> bool:
        foreign = registry.distribution not in (SESSION, Distribution(OURS, registry.distribution.version))
        return foreign and is_default(registry, config.get(registry.kind))

    return {k: v for k, v in config.items() if not (k in REGISTRIES and unused(REGISTRIES[k]))}


def without_equal_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from `layers` what is null, and `layers` itself where nothing is left: all layers are equal.

    Numbers of layers become texts, as JSON has no other keys.
    """
    kept, node = dict(config), config.get(per_layer.LAYERS)
    if isinstance(node, Mapping):
        layers = {k: v for k, v in node.items() if v is not None}
        if isinstance(at := layers.get(per_layer.AT), Mapping):
            layers[per_layer.AT] = {kind: _text_keys(v) for kind, v in at.items() if v is not None}
        kept[per_layer.LAYERS] = {k: v for k, v in layers.items() if v != {}}
    return {k: v for k, v in kept.items() if k != per_layer.LAYERS or (v is not None and v != {})}


def _text_keys(node: Any) -> Any:
    return {str(k): v for k, v in node.items()} if isinstance(node, Mapping) else node


def is_default(registry: Registry[Any], node: Any) -> bool:
    """True if the config's node of this kind means the same as leaving the kind out."""
    return not registry.multiple and (node is None or isinstance(node, Mapping)) and registry.is_default(node)
