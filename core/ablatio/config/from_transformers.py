"""Translate the config.json of a transformers model into parts and sizes of ablatio.

Each reader takes the transformers settings of one model family and returns ours by kind, in the form of a preset.
Nothing here imports torch, because a command line is composed from it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablatio.config.transformers_keys import ReadSettings, refuse_unread
from ablatio.config.transformers_parts import (
    FULL,
    SLIDING,
    TANH,
    Settings,
    attentions,
    gated,
    layernorm,
    plain,
    rope,
    windows,
)  # fmt: skip
from ablatio.errors import DamagedFile, UserError
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word

Reader = Callable[[ReadSettings], dict[str, Any]]
READERS: dict[str, Reader] = {}
CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "quantization_config")
CODE_FILES = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt")
HINT = "\n    try: ablatio fetch smollm2, a model that can be read"
HEAD_NORM_EPS = 1e-6  # of norm=rmsnorm in attention.qk_norm, which has its defaults


def refuse_code(folder: Path) -> None:
    """Raise UserError if a model folder contains code or refers to it: only installed code runs."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        data = _object(path) if path.exists() else {}
        if found := [key for key in CODE_KEYS if data.get(key)]:
            raise UserError(f"{path} has `{found[0]}`, which refers to code; only installed code runs{HINT}")
    if files := sorted(p.name for p in folder.glob("*") if p.suffix in CODE_FILES):
        raise UserError(
            f"{folder / files[0]} could run code; expected a folder with only config, tokenizer and safetensors files"
            f"{HINT}"
        )


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder; FileNotFoundError, or UserError for everything else."""
    try:
        return read_object(path)
    except DamagedFile as error:
        raise UserError(f"{error}{HINT}") from None


def read(folder: Path) -> dict[str, Any]:
    """Config of the model in `folder`: {"norm": {"name": "rmsnorm", ...}, ..., "model": {"d_model": 576, ...}}."""
    refuse_code(folder)
    path = folder / "config.json"
    try:
        theirs = _object(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a model folder: no config.json\n    try: ls {shell_word(folder.parent)}"
        ) from None
    kind = str(theirs.get("model_type"))
    if kind not in READERS:
        raise UserError(f"{path}: model_type {kind} cannot be read; supported: {', '.join(sorted(READERS))}{HINT}")
    settings = ReadSettings(theirs)
    try:
        ours = READERS[kind](settings)
        # T5's vocabulary size is left open: the objective appends its sentinel ids to those of the tokenizer.
        rows = {} if "architecture" in ours else {"vocab_size": settings["vocab_size"]}
        ours["model"] = {**rows, "tied": _tied(settings), **ours["model"]}
    except UserError as error:  # of a reader, which knows no path
        text = str(error)
        raise UserError(f"{path}: {text}{'' if 'try: ' in text else HINT}") from None
    except KeyError as error:
        raise UserError(f"{path}: `{error.args[0]}` is missing, which model_type {kind} needs{HINT}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: a setting has another value than expected: {error}{HINT}") from None
    settings.read.add("vocab_size")
    refuse_unread(settings, str(path))
    usual = {"placement": "pre", "mlp": "dense", "block": "sequential", "architecture": "causal", "objective": "lm"}
    return {**{kind: {"name": name} for kind, name in usual.items()}, "match": "none", **ours}


def _tied(theirs: Settings) -> bool:
    """True if the output head shares the embedding; the default is True except for LLaMA and its derivatives."""
    return bool(theirs.get("tie_word_embeddings", theirs["model_type"] not in ("llama", "mistral", "qwen2", "qwen3")))


def _reader(*names: str) -> Callable[[Reader], Reader]:
    def keep(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, function))
        return function

    return keep


@_reader("llama", "mistral", "qwen2", "qwen3")
def _llama(theirs: Settings) -> dict[str, Any]:
    kind, heads = theirs["model_type"], theirs["num_attention_heads"]
    _refuse_biases(theirs)
    if bool(theirs.get("attention_bias")) != bool(theirs.get("mlp_bias")) and kind in ("llama", "smollm3"):
        raise UserError("attention_bias and mlp_bias differ; ablatio has biases in both or in neither")
    eps = theirs.get("rms_norm_eps", 1e-6)
    if kind == "qwen3" and eps != HEAD_NORM_EPS:
        raise UserError(
            f"rms_norm_eps={eps} of qwen3 cannot be read: it is also that of the norms of queries and keys, which have "
            f"eps={HEAD_NORM_EPS} here"
        )
    position = rope(theirs)
    if position["fraction"] != 1.0:
        raise UserError(
            f"partial_rotary_factor={position['fraction']} of {kind} cannot be read: transformers does not use it "
            "there and rotates whole heads\n    try: delete it from config.json if it was trained with whole heads"
        )
    head = theirs.get("head_dim") or (128 if kind == "qwen3" else theirs["hidden_size"] // heads)
    types = windows(theirs, theirs["num_hidden_layers"])
    if kind == "qwen2" and SLIDING in types:
        raise UserError("sliding windows of qwen2 cannot be read: attention=sliding has no biases on queries and keys")
    own: dict[str, dict[str, Any]] = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": "rmsnorm"}}
    return attentions(theirs, types, own.get(kind, {})) | {
        "norm": {"name": "rmsnorm", "eps": eps},
        "activation": gated(theirs.get("hidden_act", "silu")),
        "position": position,
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


def _refuse_biases(theirs: Settings) -> None:
    """Raise UserError for biases that the family has in transformers and not here, or here and not in transformers."""
    kind, given = theirs["model_type"], {key: theirs.get(key) for key in ("attention_bias", "mlp_bias")}
    if kind == "qwen3" and given["attention_bias"]:
        raise UserError("attention_bias of qwen3 cannot be read: it has biases in o_proj and none in its MLP")
    # transformers reads them for llama and smollm3 alone: mistral has no biases, qwen2 those of queries, keys, values.
    fixed = {"mistral": {"attention_bias": False}, "qwen2": {"attention_bias": True}}.get(kind, {})
    if kind in ("mistral", "qwen2", "qwen3"):
        fixed = {**fixed, "mlp_bias": False}
    for key, value in fixed.items():
        if given[key] is not None and bool(given[key]) != value:
            raise UserError(
                f"{key}={given[key]} of {kind} cannot be read: transformers does not use it there\n"
                "    try: delete it from config.json if the model was trained without it"
            )


@_reader("smollm3")
def _smollm3(theirs: ReadSettings) -> dict[str, Any]:
    count, every = theirs["num_hidden_layers"], theirs.get("no_rope_layer_interval", 4)
    rotated = theirs.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
    if len(rotated) < count or not any(rotated[:count]):
        raise UserError(
            f"no_rope_layers has {sum(map(bool, rotated))} rotated of {len(rotated)} layers; expected {count}"
        )
    if theirs.get("rope_scaling") or (theirs.get("rope_parameters") or {}).get("rope_type", "default") != "default":
        raise UserError("RoPE scaling of smollm3 cannot be read")
    # Not a dict of them: copying reads every key, and then no unknown setting would be refused.
    found = _llama(theirs.with_values(rope_theta=theirs.get("rope_theta") or 2000000.0))
    return found | {
        "layers": found.get("layers", {}) | {"position": ["rope" if r else "none" for r in rotated[:count]]}
    }


@_reader("gemma3_text")
def _gemma3(theirs: Settings) -> dict[str, Any]:
    d_model, head = theirs["hidden_size"], theirs.get("head_dim", 256)
    if soft := [k for k in ("attn_logit_softcapping", "final_logit_softcapping") if theirs.get(k)]:
        raise UserError(f"`{soft[0]}` of gemma3_text cannot be read; published models have none")
    if theirs.get("use_bidirectional_attention") or theirs.get("attention_bias"):
        raise UserError("gemma3_text with bidirectional attention or biases cannot be read")
    if (eps := theirs.get("rms_norm_eps", 1e-6)) != HEAD_NORM_EPS:
        raise UserError(f"rms_norm_eps={eps} of gemma3_text cannot be read: norms of heads have {HEAD_NORM_EPS} here")
    types = windows(theirs, theirs["num_hidden_layers"])
    whole, local = _gemma_rotations(theirs)
    return (
        attentions(theirs, types, {"qk_norm": "gemma_rmsnorm"})
        | {
            "norm": {"name": "gemma_rmsnorm", "eps": eps},
            "placement": {"name": "sandwich"},
            "activation": gated(theirs.get("hidden_activation") or theirs.get("hidden_act") or "gelu_pytorch_tanh"),
            "position": whole if FULL in types else local,
            "model": {
                "d_model": d_model,
                "n_layers": theirs["num_hidden_layers"],
                "n_heads": theirs["num_attention_heads"],
                "d_head": head,
                "d_ff": theirs["intermediate_size"],
                "max_len": theirs.get("max_position_embeddings", 131072),
                "bias": False,
                "embedding_scale": d_model**0.5,
                "attention_scale": theirs.get("query_pre_attn_scalar", 256) ** -0.5,
            },
        }
        | _local_rotations(theirs, types, whole, local)
    )


def _gemma_rotations(theirs: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoPE of the global and of the local layers, from transformers 5 or 4."""
    said = theirs.get("rope_parameters") or {}
    if FULL in said or SLIDING in said:
        whole, local = ({"model_type": "gemma3_text", "rope_parameters": said.get(k) or {}} for k in (FULL, SLIDING))
        # Read and left: beside rotations per type of layer it has no effect, and must not count as unknown.
        theirs.get("rope_theta")
    else:
        whole = {k: theirs.get(k) for k in ("rope_theta", "rope_scaling", "rope_parameters") if theirs.get(k)}
        local = {"rope_theta": theirs.get("rope_local_base_freq", 10000.0)}
        whole.setdefault("rope_theta", 1000000.0)
    return rope(whole), rope(local)


def _local_rotations(
    theirs: Settings, types: list[str], whole: dict[str, Any], local: dict[str, Any]
) -> dict[str, Any]:
    if FULL not in types or SLIDING not in types or whole == local:
        return {}
    own = {k: v for k, v in local.items() if k != "name"} | {"scaling": "none"}
    layers = attentions(theirs, types, {"qk_norm": "gemma_rmsnorm"})["layers"]
    return {"layers": layers | {"position": [{"rope": own} if t == SLIDING else "rope" for t in types]}}


@_reader("gpt2")
def _gpt2(theirs: Settings) -> dict[str, Any]:
    return {
        "norm": layernorm(theirs, "layer_norm_epsilon"),
        "activation": plain(theirs.get("activation_function", "gelu_new")),
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
        "activation": plain(theirs.get("activation_function", "relu")),
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
        "norm": layernorm(theirs, "layer_norm_epsilon"),
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
    position = rope(theirs, float(theirs.get("rotary_pct", 0.25)))
    return {
        "norm": layernorm(theirs, "layer_norm_eps"),
        "activation": plain(theirs.get("hidden_act", "gelu")),
        "position": position,
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
    has_gate = form != activation
    if has_gate and activation == "gelu":
        activation = TANH[0]  # transformers reads `gated-gelu` as the tanh approximation, despite its name
    scaled = theirs.get("scale_decoder_outputs", _tied(theirs))  # T5 1.0 scales the logits, 1.1 does not
    return {
        "norm": {"name": "rmsnorm", "eps": theirs.get("layer_norm_epsilon", 1e-6)},
        "activation": gated(activation) if has_gate else plain(activation),
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
