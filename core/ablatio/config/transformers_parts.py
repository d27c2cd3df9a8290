"""Translate settings of transformers' config.json into single parts: activations, rotations, windows."""

import math
from collections.abc import Mapping
from typing import Any

from ablatio.errors import UserError

Settings = Mapping[str, Any]
GATED = {"silu": "swiglu", "swish": "swiglu", "relu": "reglu"}
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")
EXACT = ("gelu", "gelu_python")


def plain(name: str) -> dict[str, Any]:
    """Elementwise activation for transformers' name of it."""
    if name in TANH or name in EXACT:
        return {"name": "gelu", "approximate": "tanh" if name in TANH else "none"}
    if name in ("relu", "silu", "mish", "quick_gelu", "relu2"):
        return {"name": name}
    raise UserError(f"transformers' activation {name!r} has no equivalent in ablatio")


def gated(name: str) -> dict[str, Any]:
    """Gated unit for transformers' name of the activation on its gate."""
    if name in TANH or name in EXACT:
        return {"name": "geglu", "approximate": "tanh" if name in TANH else "none"}
    if name in GATED:
        return {"name": GATED[name]}
    raise UserError(f"transformers' gated activation {name!r} has no equivalent in ablatio")


def layernorm(theirs: Settings, key: str) -> dict[str, Any]:
    """LayerNorm with the epsilon that stands under `key`."""
    return {"name": "layernorm", "eps": theirs.get(key, 1e-5)}


ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "finetuned",
)  # fmt: skip


def rope(theirs: Settings, fraction: float = 1.0) -> dict[str, Any]:
    """RoPE base, fraction and scaling from transformers 5 (rope_parameters) or 4 (rope_theta, ...).

    fraction  share of a head that is rotated, if the config does not say it
    """
    said: dict[str, Any] = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    if other := [key for key in said if key not in ROPE_KEYS]:
        raise UserError(f"rope_parameters has the setting {other[0]!r} = {said[other[0]]!r}, which cannot be read")
    method = said.get("rope_type", said.get("type", "default"))
    base = said.get("rope_theta") or theirs.get("rope_theta") or theirs.get("rotary_emb_base") or 10000.0
    partial = said.get("partial_rotary_factor") or theirs.get("partial_rotary_factor") or fraction
    found = {"name": "rope", "layout": "half", "base": float(base), "fraction": float(partial)}
    if method == "default":
        return found
    known: dict[str, tuple[str, ...]] = {
        "linear": (),
        "dynamic": (),
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }
    if method not in known:
        raise UserError(f"transformers' RoPE scaling {method!r} cannot be read; supported: {', '.join(known)}")
    original = said.get("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    factor = said.get("factor")
    if method == "yarn":
        factor = factor or theirs["max_position_embeddings"] / original
        said["attention_factor"] = said.get("attention_factor") or _yarn_attention_factor(said, factor)
    more = {key: said[key] for key in known[method] if said.get(key) is not None}
    return {**found, "scaling": method, "factor": factor or said["factor"], "original_max_len": original, **more}


def _yarn_attention_factor(said: Settings, factor: float) -> float | None:
    """m(mscale) / m(mscale_all_dim) with m(a) = 0.1 a log(factor) + 1, if the config has both; None: the default."""
    mscale, of_all = said.get("mscale"), said.get("mscale_all_dim")
    if not (mscale and of_all):
        return None
    growth = 0.1 * math.log(max(1.0, factor))
    return float((growth * mscale + 1) / (growth * of_all + 1))


FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' layer_types


def windows(theirs: Settings, count: int) -> list[str]:
    """Type of attention of each layer, full or sliding."""
    kind, window = theirs["model_type"], theirs.get("sliding_window")
    used = window is not None and (kind in ("mistral", "gemma3_text") or bool(theirs.get("use_sliding_window")))
    types = theirs.get("layer_types")
    pattern = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern") or 6  # of older files
    if types is None:
        first = theirs.get("max_window_layers", 28) if kind in ("qwen2", "qwen3") else 0
        every = int(pattern) if kind == "gemma3_text" else 0
        types = [
            SLIDING if used and i >= first and not (every and (i + 1) % every == 0) else FULL for i in range(count)
        ]
    if other := set(types) - {FULL, SLIDING}:
        raise UserError(f"layer_types with {sorted(other)[0]!r} cannot be read; expected {FULL} or {SLIDING}")
    if len(types) != count:
        raise UserError(f"layer_types has {len(types)} entries for num_hidden_layers={count}")
    if SLIDING in types and window is None:
        raise UserError(f"layer_types has {SLIDING}, and `sliding_window` is missing")
    return list(types)


def attentions(theirs: Settings, types: list[str], more: dict[str, Any]) -> dict[str, Any]:
    """The run's attention, and the layers' where some of them have a window; more: knobs of all layers."""
    heads = theirs["num_attention_heads"]
    groups = theirs.get("num_key_value_heads") or heads
    plain: dict[str, Any] = {"name": "mha"} if groups == heads else {"name": "gqa", "n_kv_heads": groups}
    if SLIDING not in types:
        return {"attention": plain | more}
    sliding: dict[str, Any] = {
        "window": theirs["sliding_window"],
        "n_kv_heads": None if groups == heads else groups,
    } | more
    if FULL not in types:
        return {"attention": {"name": "sliding"} | sliding}
    return {
        "attention": plain | more,
        "layers": {"attention": [{"sliding": sliding} if found == SLIDING else plain["name"] for found in types]},
    }
