"""Layers that read the cached keys of another layer must have its position encoding."""

from collections.abc import Iterator, Mapping
from typing import Any

from ablatio.errors import Problem
from ablatio.registry import per_layer
from ablatio.registry.layer_groups import first_of_group
from ablatio.registry.registry import REGISTRIES


def position_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of layers that read the cached keys of another layer, which has another position encoding.

    Those keys are rotated by the position of the layer that caches them, and queries must be rotated alike.
    """
    attention, position = REGISTRIES["attention"], REGISTRIES["position"]
    if position.kind not in per_layer.varied(config):
        return
    for depth in per_layer.depths(config):
        attentions, found = per_layer.nodes(config, attention, depth), per_layer.nodes(config, position, depth)
        for layer, node in enumerate(attentions):
            first = first_of_group(attention, layer, node)
            if found[first] != found[layer]:
                what = f"layer {layer}: attention={node['name']} reads the keys that layer {first} caches, so both need"
                what += f" one position; got {_written(found[first])} in layer {first} and {_written(found[layer])} in"
                lists, _ = per_layer.section(config)
                section = per_layer.LAYERS if position.kind in lists else f"{per_layer.LAYERS}.{per_layer.AT}"
                where = f"{section}.{position.kind}"
                yield Problem(where, f"{what} layer {layer}", f"{where}=null")
                return


def _written(node: Mapping[str, Any]) -> str:
    """The position of a layer as an entry of a list, with the knobs that differ from its defaults."""
    defaults = REGISTRIES["position"][node["name"]].defaults
    knobs = {k: v for k, v in node.items() if k != "name" and v != defaults[k]}
    return str(per_layer.Entry(str(node["name"]), knobs).to_yaml())
