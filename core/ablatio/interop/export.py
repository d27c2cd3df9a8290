"""A run as a folder that transformers loads: config.json, model.safetensors, the tokenizer, how to generate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.config.kind_lists import shaping
from ablatio.data.chat import Template, sign_id
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.interop.families import FAMILIES, family_of, incompatibilities
from ablatio.interop.families.base import Family
from ablatio.model.build import ORIGIN
from ablatio.model.language_model import LanguageModel
from ablatio.registry.kinds import architectures
from ablatio.storage.atomic_write import write_pieces, write_text
from ablatio.storage.checkpoints import make_folder, write_json
from ablatio.storage.safetensors_io import tensor_pieces

OWN = "ablatio"
END = "<|endoftext|>"


def export(
    config: Mapping[str, Any],
    model: LanguageModel,
    tokenizer: Tokenizer,
    folder: Path,
    kind: str | None = None,
    template: Template | None = None,
) -> str:
    """Write the folder and return whose class loads it: one of transformers' own if the combination is that, or ours.

    kind: asks for that class.  template: the form in which the model was taught to speak.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; nothing is written over\n    try: --to another folder")
    family = family_for(config, tokenizer, kind)
    if family is not None:
        settings, tensors = family.config_json(), family.to_native(model.state_dict())
    else:
        settings, tensors = own_config(config, model, tokenizer), dict(model.state_dict())
    make_folder(folder)
    _write_tensors(folder / "model.safetensors", tensors)
    for name, data in _tokenizer_files(tokenizer, int(config["model"]["max_len"]), template).items():
        (write_text if isinstance(data, str) else write_json)(folder / name, data)
    starts = {"decoder_start_token_id": tokenizer.eos} if settings.get("is_encoder_decoder") else {}
    stops = list(
        dict.fromkeys([tokenizer.eos if template is None else sign_id(tokenizer, template.end), tokenizer.eos])
    )
    last = stops if len(stops) > 1 else tokenizer.eos
    ends = {"bos_token_id": tokenizer.eos, "eos_token_id": last, "pad_token_id": tokenizer.eos}
    write_json(folder / "generation_config.json", {**ends, **starts})
    write_json(folder / "config.json", settings)  # last: without it the folder is no model
    return str(settings["model_type"])


def family_for(config: Mapping[str, Any], tokenizer: Tokenizer, kind: str | None) -> Family | None:
    """The class of transformers' own that this combination is, or that was asked for; None: ours."""
    arguments = (config, tokenizer.vocab_size, tokenizer.eos)
    if kind is None:
        found = family_of(*arguments)
    elif kind == OWN:
        found = None
    else:
        known = {family.model_type: family for family in FAMILIES}
        if kind not in known:
            raise UserError(f"there is no class {kind}; there are {', '.join((*known, OWN))}")
        found = known[kind](*arguments)
        if reasons := found.misfits():
            raise UserError(f"this model is no {kind}: {'; '.join(reasons)}\n    try: --as {OWN}")
    if found is None and len(architectures[config["architecture"]["name"]].facts["stacks"]) == 2:
        reasons = incompatibilities(config, tokenizer.vocab_size)["t5"]
        raise UserError(f"transformers has T5's encoder-decoder alone, and this is another one: {'; '.join(reasons)}")
    return found


def own_config(config: Mapping[str, Any], model: LanguageModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of our own class: what shapes the model, and nothing of where and on what it was trained."""
    return {
        "architectures": ["AblatioForCausalLM"],
        "model_type": OWN,
        "vocab_size": model.vocab_size,
        "ids": tokenizer.vocab_size,
        "tie_word_embeddings": bool(config["model"]["tied"]),
        "bos_token_id": tokenizer.eos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": None,
        "parts": {key: config[key] for key in (*shaping(), "model", "match") if config.get(key) is not None}
        | {"model": {k: v for k, v in config["model"].items() if k not in ORIGIN}}
        | {"objective": _without_folders(config["objective"])},
    }


def _without_folders(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Where a teacher stood on this machine is of no concern to those who get the model."""
    return dict(objective) | ({"teacher": "teacher"} if objective.get("teacher") else {})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    pieces, names = tensor_pieces(tensors)
    del names  # of tied matrices one is stored; the class that loads them ties them again
    write_pieces(path, pieces)


def _tokenizer_files(tokenizer: Tokenizer, length: int, template: Template | None) -> dict[str, Any]:
    """tokenizer.json and its settings, where the tokenizer can say itself in the terms of the tokenizers library."""
    to_fast = getattr(tokenizer, "fast", None)
    if to_fast is None:
        return {}
    fast, jinja = to_fast(END), getattr(template, "jinja", None)
    end = fast.id_to_token(tokenizer.eos)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # Text that looks like a sign is text; but transformers writes a whole conversation as one text, signs and all.
        "split_special_tokens": jinja is None,
    }
    spoken = {} if jinja is None else {"chat_template.jinja": jinja}
    return {"tokenizer.json": fast.to_str(), "tokenizer_config.json": settings} | spoken


@torch.no_grad()
def difference(folder: Path, model: LanguageModel) -> float | None:
    """The largest difference of logits between the folder, as transformers loads it, and the model; None without it."""
    try:
        from transformers.utils.logging import disable_progress_bar

        from ablatio.interop.transformers_model import load
    except ImportError:
        return None
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded, two = load(folder).train(False), hasattr(model, "encoder")
    device = next(model.parameters()).device
    tokens = torch.randint(model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if two else {})
    theirs = loaded(**inputs).logits
    return float((model(tokens.to(device)).cpu() - theirs).abs().max())
