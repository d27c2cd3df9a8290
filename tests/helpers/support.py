"""Model configs for tests: `from helpers.support import model_config` (pytest has `pythonpath = ["tests"]`)."""

from typing import Any

from torch import nn

from ablatio.config.kind_lists import shaping
from ablatio.model.builder import ModelBuilder
from ablatio.registry.registry import REGISTRIES

SIZES = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_len": 64,
    "d_head": None,
    "d_ff": None,
    "tied": True,
    "bias": False,
    "dropout": 0.0,
    "distinct_layers": None,
    "sharing": "cycle",
}


def model_config(**options: Any) -> dict[str, Any]:
    """A resolved model config from sizes and options: `norm="layernorm"` or `norm={"name": "layernorm", "eps": 1e-6}`.

    Knobs that are not given have the registry's defaults: model_config(position="alibi", d_model=64, tied=False).
    """
    config: dict[str, Any] = {"match": options.pop("match", "params")}
    config["model"] = SIZES | {k: v for k, v in options.items() if k in SIZES}
    if unknown := options.keys() - SIZES.keys() - set(shaping()):
        raise TypeError(f"model_config got {sorted(unknown)}; expected sizes or kinds that shape a model")
    for kind in shaping():
        chosen = options.get(kind, REGISTRIES[kind].usual)
        if not chosen:  # an optional kind
            continue
        knobs = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
        config[kind] = {"name": knobs["name"], **REGISTRIES[kind][knobs["name"]].defaults} | knobs
    return config


def head_norm(option: str, name: str, width: int) -> nn.Module:
    """The inner norm that ModelBuilder passes to an attention, for attentions built without it."""
    return ModelBuilder(model_config(), 64).head_norm(option, name, width)
