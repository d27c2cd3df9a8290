"""Parts of kinds that attach to a place of the model (`Registry.attaches`), run by forward hooks.

Such a part becomes a submodule of the module it attaches to, named like its kind, and transforms that module's output.
So no model class has to know the kind; its weights are counted, initialized, tuned and saved like all others, and a
model without such a part has neither the submodule nor the hook.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from torch import Tensor, nn

from ablatio.registry.per_layer import varied
from ablatio.registry.registry import REGISTRIES, ContractError, Place, Registry

PLACES: tuple[Place, ...] = tuple(place for place in get_args(Place) if place)


def chosen_at(place: Place, config: Mapping[str, Any]) -> list[Registry[Any]]:
    """Kinds that attach at `place` and of which the config names an option with an effect, perhaps for some layers."""
    some = varied(config)
    return [
        registry
        for registry in REGISTRIES.values()
        if registry.attaches == place
        and (node := config.get(registry.kind))
        and (node["name"] != registry.default or registry.kind in some)
    ]


def put_on(module: nn.Module, kind: str, part: nn.Module) -> None:
    """Add `part` as the submodule `kind` of `module`, whose output passes through it."""
    if hasattr(module, kind):
        raise ContractError(f"{type(module).__name__} has an attribute `{kind}` already; give the kind another name")
    module.add_module(kind, part)
    # The hook looks the part up by name, so that a copy of the module runs its own copy of the part.
    module.register_forward_hook(partial(_through, kind))


def put_before(module: nn.Module, kind: str, part: nn.Module) -> None:
    """Add `part` as the submodule `kind` of a layer; it maps the layer's input: (x, ctx) -> (part(x, ctx), ctx)."""
    if hasattr(module, kind):
        raise ContractError(f"{type(module).__name__} has an attribute `{kind}` already; give the kind another name")
    module.add_module(kind, part)
    module.register_forward_pre_hook(partial(_before, kind))


def _before(kind: str, module: nn.Module, inputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    part: nn.Module = getattr(module, kind)
    x, ctx = inputs
    return part(x, ctx), ctx


def _through(kind: str, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    part: nn.Module = getattr(module, kind)
    changed: Tensor = part(output)
    return changed
