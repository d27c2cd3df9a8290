"""Translate the config.json of a transformers model into parts and sizes of ablatio.

Each reader takes the transformers settings of one model family and returns ours by kind, in the form of a preset.
Nothing here imports torch, because a command line is composed from it.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablatio.config.transformers_keys import ReadSettings, refuse_unread
from ablatio.errors import UserError
from ablatio.storage.paths import shell_word

Settings = Mapping[str, Any]
READERS: dict[str, Callable[[Settings], dict[str, Any]]] = {}
CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "quantization_config")
CODE_FILES = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt")
GATED = {"silu": "swiglu", "swish": "swiglu", "relu": "reglu"}
TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")
HEAD_NORM_EPS = 1e-6  # of norm=rmsnorm in attention.qk_norm, which has its defaults
EXACT = ("gelu", "gelu_python")


def refuse_code(folder: Path) -> None:
    """Raise UserError if a model folder contains code or refers to it: only installed code runs."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if found := [key for key in CODE_KEYS if isinstance(data, dict) and data.get(key)]:
            raise UserError(f"{path} has `{found[0]}`, which refers to code; only installed code runs")
    if files := sorted(p.name for p in folder.glob("*") if p.suffix in CODE_FILES):
        raise UserError(
            f"{folder / files[0]} could run code; expected a folder with only config, tokenizer and safetensors files"
        )


def read(folder: Path) -> dict[str, Any]:
    """Config of the model in `folder`: {"norm": {"name": "rmsnorm", ...}, ..., "model": {"d_model": 576, ...}}."""
    refuse_code(folder)
    path = folder / "config.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        kind = str(theirs["model_type"])
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a model folder: no config.json\n    try: ls {shell_word(folder.parent)}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a model config ({type(error).__name__}: {error})") from None
    if kind not in READERS:
        raise UserError(f"{path}: model_type {kind} cannot be read; supported: {', '.join(sorted(READERS))}")
    settings = ReadSettings(theirs)
    try:
        ours = READERS[kind](settings)
        # T5's vocabulary size is left open: the objective appends its sentinel ids to those of the tokenizer.
        rows = {} if "architecture" in ours else {"vocab_size": settings["vocab_size"]}
        ours["model"] = {**rows, "tied": _tied(settings), **ours["model"]}
    except KeyError as error:
        raise UserError(f"{path}: `{error.args[0]}` is missing, which model_type {kind} needs") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: a setting has a value of another type than expected: {error}") from None
    settings.read.add("vocab_size")
    refuse_unread(settings, str(path))
    usual = {"placement": "pre", "mlp": "dense", "block": "sequential", "architecture": "causal", "objective": "lm"}
    return {**{kind: {"name": name} for kind, name in usual.items()}, "match": "none", **ours}


def _tied(theirs: Settings) -> bool:
    """True if the output head shares the embedding; the default is True except for LLaMA and its derivatives."""
    return bool(theirs.get("tie_word_embeddings", theirs["model_type"] not in ("llama", "mistral", "qwen2", "qwen3")))


def _reader(*names: str) -> Callable[[Callable[[Settings], dict[str, Any]]], Callable[[Settings], dict[str, Any]]]:
    def keep(function: Callable[[Settings], dict[str, Any]]) -> Callable[[Settings], dict[str, Any]]:
        READERS.update(dict.fromkeys(names, function))
        return function

    return keep


def _plain(name: str) -> dict[str, Any]:
    """Elementwise activation for transformers' name of it."""
    if name in TANH or name in EXACT:
        return {"name": "gelu", "approximate": "tanh" if name in TANH else "none"}
    if name in ("relu", "silu", "mish", "quick_gelu", "relu2"):
        return {"name": name}
    raise UserError(f"transformers' activation {name!r} has no equivalent in ablatio")


def _gated(name: str) -> dict[str, Any]:
    """Gated unit for transformers' name of the activation on its gate."""
    if name in TANH or name in EXACT:
        return {"name": "geglu", "approximate": "tanh" if name in TANH else "none"}
    if name in GATED:
        return {"name": GATED[name]}
    raise UserError(f"transformers' gated activation {name!r} has no equivalent in ablatio")


def _layernorm(theirs: Settings, key: str) -> dict[str, Any]:
    return {"name": "layernorm", "eps": theirs.get(key, 1e-5)}


ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "finetuned",
)  # fmt: skip


def _rope(theirs: Settings, fraction: float = 1.0) -> dict[str, Any]:
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
        "yarn": ("beta_fast", "beta_slow", "attention_factor"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }
    if method not in known:
        raise UserError(f"transformers' RoPE scaling {method!r} cannot be read; supported: {', '.join(known)}")
    original = said.get("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    factor = said.get("factor")
    if method == "yarn":
        factor = factor or theirs["max_position_embeddings"] / original
        said["attention_factor"] = said.get("attention_factor") or _yarn_attention_factor(said, factor)
        if said.get("truncate") is False:
            raise UserError(
                "yarn with truncate=false cannot be read: here the ends of its ramp are rounded to integers"
            )
    more = {key: said[key] for key in known[method] if said.get(key) is not None}
    return {**found, "scaling": method, "factor": factor or said["factor"], "original_max_len": original, **more}


def _yarn_attention_factor(said: Settings, factor: float) -> float | None:
    """m(mscale) / m(mscale_all_dim) with m(a) = 0.1 a log(factor) + 1, if the config has both; None: the default."""
    mscale, of_all = said.get("mscale"), said.get("mscale_all_dim")
    if not (mscale and of_all):
        return None
    growth = 0.1 * math.log(max(1.0, factor))
    return float((growth * mscale + 1) / (growth * of_all + 1))


@_reader("llama", "mistral", "qwen2", "qwen3")
def _llama(theirs: Settings) -> dict[str, Any]:
    kind, heads = theirs["model_type"], theirs["num_attention_heads"]
    groups = theirs.get("num_key_value_heads") or heads
    if theirs.get("use_sliding_window") or (theirs.get("sliding_window") and kind == "mistral"):
        raise UserError(
            "sliding-window attention in all layers is not supported; turn it off in config.json if it is not needed"
        )
    if bool(theirs.get("attention_bias")) != bool(theirs.get("mlp_bias")) and kind == "llama":
        raise UserError("attention_bias and mlp_bias differ; ablatio has biases in both or in neither")
    if kind == "qwen3" and theirs.get("attention_bias"):
        raise UserError("attention_bias of qwen3 cannot be read: it has biases in o_proj and none in its MLP")
    eps = theirs.get("rms_norm_eps", 1e-6)
    if kind == "qwen3" and eps != HEAD_NORM_EPS:
        raise UserError(
            f"rms_norm_eps={eps} of qwen3 cannot be read: it is also that of the norms of queries and keys, which have "
            f"eps={HEAD_NORM_EPS} here"
        )
    if other := set(theirs.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(f"layer_types with {sorted(other)[0]!r} cannot be read; expected full_attention in each layer")
    position = _rope(theirs)
    if position["fraction"] != 1.0:
        raise UserError(
            f"partial_rotary_factor={position['fraction']} of {kind} cannot be read: transformers does not use it "
            "there and rotates whole heads\n    try: delete it from config.json if it was trained with whole heads"
        )
    head = theirs.get("head_dim") or (128 if kind == "qwen3" else theirs["hidden_size"] // heads)
    attention: dict[str, Any] = {"name": "mha"} if groups == heads else {"name": "gqa", "n_kv_heads": groups}
    if kind == "qwen2":
        attention["qkv_bias"] = True
    if kind == "qwen3":
        attention["qk_norm"] = "rmsnorm"
    return {
        "norm": {"name": "rmsnorm", "eps": eps},
        "activation": _gated(theirs.get("hidden_act", "silu")),
        "position": position,
        "attention": attention,
        "model": {
            "d_model": theirs["hidden_size"],
            "n_layers": theirs["num_hidden_layers"],
            "n_heads": heads,
            "d_head": head,
            "d_ff": theirs["intermediate_size"],
            "max_len": theirs.get("max_position_embeddings", 2048),
            "bias": bool(theirs.get("mlp_bias", False)),
        },
    }


@_reader("gpt2")
def _gpt2(theirs: Settings) -> dict[str, Any]:
    return {
        "norm": _layernorm(theirs, "layer_norm_epsilon"),
        "activation": _plain(theirs.get("activation_function", "gelu_new")),
        "position": {"name": "learned"},
        "attention": {"name": "mha"},
        "model": {
            "d_model": theirs["n_embd"],
            "n_layers": theirs["n_layer"],
            "n_heads": theirs["n_head"],
            "d_ff": theirs.get("n_inner") or 4 * theirs["n_embd"],
            "max_len": theirs["n_positions"],
            "bias": True,
            "attention_scale": None if theirs.get("scale_attn_weights", True) else 1.0,
        },
    }


@_reader("opt")
def _opt(theirs: Settings) -> dict[str, Any]:
    if not theirs.get("do_layer_norm_before", True) or theirs["word_embed_proj_dim"] != theirs["hidden_size"]:
        raise UserError("OPT-350m cannot be read: it has post-norm layers and a projected, narrower embedding")
    return {
        "norm": {"name": "layernorm", "eps": 1e-5},
        "activation": _plain(theirs.get("activation_function", "relu")),
        "position": {"name": "learned"},
        "attention": {"name": "mha"},
        "model": {
            "d_model": theirs["hidden_size"],
            "n_layers": theirs["num_hidden_layers"],
            "n_heads": theirs["num_attention_heads"],
            "d_ff": theirs["ffn_dim"],
            "max_len": theirs["max_position_embeddings"],
            "bias": bool(theirs.get("enable_bias", True)),
            "final_norm": False if theirs.get("_remove_final_layer_norm") else None,
        },
    }


@_reader("bloom")
def _bloom(theirs: Settings) -> dict[str, Any]:
    return {
        "norm": _layernorm(theirs, "layer_norm_epsilon"),
        "activation": {"name": "gelu", "approximate": "tanh"},
        "position": {"name": "alibi"},
        "attention": {"name": "mha"},
        "model": {
            "d_model": theirs.get("n_embed") or theirs["hidden_size"],
            "n_layers": theirs["n_layer"],
            "n_heads": theirs["n_head"],
            "max_len": theirs.get("seq_length", 2048),
            "bias": True,
            "embedding_norm": True,
        },
    }


@_reader("gpt_neox")
def _gpt_neox(theirs: Settings) -> dict[str, Any]:
    parallel = theirs.get("use_parallel_residual", True)
    rope = _rope(theirs, float(theirs.get("rotary_pct", 0.25)))
    return {
        "norm": _layernorm(theirs, "layer_norm_eps"),
        "activation": _plain(theirs.get("hidden_act", "gelu")),
        "position": rope,
        "attention": {"name": "mha"} | ({} if theirs.get("attention_bias", True) else {"qkv_bias": False}),
        "block": {"name": "parallel", "own_norms": True} if parallel else {"name": "sequential"},
        "model": {
            "d_model": theirs["hidden_size"],
            "n_layers": theirs["num_hidden_layers"],
            "n_heads": theirs["num_attention_heads"],
            "d_ff": theirs["intermediate_size"],
            "max_len": theirs["max_position_embeddings"],
            "bias": True,
        },
    }


@_reader("t5")
def _t5(theirs: Settings) -> dict[str, Any]:
    form = theirs.get("feed_forward_proj", "relu")
    activation = form.removeprefix("gated-")
    gated = form != activation
    if gated and activation == "gelu":
        activation = TANH[0]  # transformers reads `gated-gelu` as the tanh approximation, despite its name
    scaled = theirs.get("scale_decoder_outputs", _tied(theirs))  # T5 1.0 scales the logits, 1.1 does not
    return {
        "norm": {"name": "rmsnorm", "eps": theirs.get("layer_norm_epsilon", 1e-6)},
        "activation": _gated(activation) if gated else _plain(activation),
        "position": {
            "name": "t5",
            "buckets": theirs.get("relative_attention_num_buckets", 32),
            "max_distance": theirs.get("relative_attention_max_distance", 128),
        },
        "attention": {"name": "mha"},
        "architecture": {
            "name": "encoder_decoder",
            "decoder_start": theirs.get("decoder_start_token_id", theirs.get("pad_token_id")),
            "source_end": True,
        },
        "objective": {"name": "span_corruption"},
        "model": {
            "d_model": theirs["d_model"],
            "n_layers": theirs.get("num_decoder_layers") or theirs["num_layers"],
            "encoder_layers": theirs["num_layers"],
            "n_heads": theirs["num_heads"],
            "d_head": theirs["d_kv"],
            "d_ff": theirs["d_ff"],
            "max_len": theirs.get("n_positions", 512),
            "attention_scale": 1.0,
            "logit_scale": theirs["d_model"] ** -0.5 if scaled else 1.0,
        },
    }
