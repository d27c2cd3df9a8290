"""What several tests need: `from helpers.support import model_config` (pytest has `pythonpath = ["tests"]`)."""

from typing import Any

from ablatio.registry.registry import REGISTRIES

PARTS = {
    "norm": "rmsnorm",
    "placement": "pre",
    "activation": "swiglu",
    "mlp": "dense",
    "position": "rope",
    "attention": "mha",
    "block": "sequential",
    "architecture": "causal",
    "init": "gpt2",
    "objective": "lm",
}
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
    """A resolved model config: `norm="layernorm"` or `norm={"name": "layernorm", "eps": 1e-6}`; sizes by their names.

    Knobs that are not given have the registry's defaults: model_config(position="alibi", d_model=64, tied=False).
    """
    config: dict[str, Any] = {"match": options.pop("match", "params")}
    config["model"] = SIZES | {k: v for k, v in options.items() if k in SIZES}
    if unknown := options.keys() - SIZES.keys() - PARTS.keys():
        raise TypeError(f"model_config does not know {sorted(unknown)}")
    for kind, default in PARTS.items():
        chosen = options.get(kind, default)
        knobs = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
        config[kind] = {"name": knobs["name"], **REGISTRIES[kind][knobs["name"]].defaults} | knobs
    return config
