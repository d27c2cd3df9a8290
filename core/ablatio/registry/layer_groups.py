"""Groups of layers of which the first computes what the others use."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablatio.errors import Problem
from ablatio.registry.registry import Registry


def first_of_group(registry: Registry[Any], layer: int, node: Mapping[str, Any]) -> int:
    """Number of the layer whose results this one uses, as the fact `same_in_groups` of its part says; else its own."""
    knob = registry[node["name"]].facts.get("same_in_groups")
    return layer - layer % int(node[knob]) if knob else layer


def group_problems(where: str, registry: Registry[Any], found: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """The problem of a layer that uses what another one computes, which has another part."""
    for layer, node in enumerate(found):
        first = first_of_group(registry, layer, node)
        if found[first] != node:
            kind = registry.kind
            what = f"layer {layer}: {kind}={node['name']} uses what layer {first} computes, which has another {kind}"
            yield Problem(where, what, f"{where}=null")
            return
