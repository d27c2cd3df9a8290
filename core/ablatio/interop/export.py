"""Export of a run as a transformers folder: config.json, model.safetensors, tokenizer and generation settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.config.kind_lists import model_keys
from ablatio.data.chat import Template, sign_id
from ablatio.data.types import Tokenizer, start_id
from ablatio.errors import UserError
from ablatio.interop.families import FAMILIES, family_of, incompatibilities
from ablatio.interop.families.base import Family
from ablatio.model.builder import ORIGIN
from ablatio.model.language_model import LanguageModel
from ablatio.registry.kinds import architectures
from ablatio.storage.atomic_write import write_pieces, write_text
from ablatio.storage.checkpoints import make_folder, write_json
from ablatio.storage.safetensors_io import tensor_pieces

OWN = "ablatio"  # model_type of ablatio's own class
END = "<|endoftext|>"  # how the end token is written in an exported tokenizer


def export(
    config: Mapping[str, Any],
    model: LanguageModel,
    tokenizer: Tokenizer,
    folder: Path,
    kind: str | None = None,
    template: Template | None = None,
) -> str:
    """Write a folder that transformers loads; return its model_type.

    That is a transformers class if one computes exactly this combination of parts, else ablatio's own.

    kind      export as this class; UserError if the combination does not fit
    template  chat template with which the model was trained
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty, and an export never overwrites files\n    try: --to another folder")
    family = family_for(config, tokenizer, kind)
    if family is not None:
        settings, tensors = family.config_json(), family.to_native(model.state_dict())
    else:
        settings, tensors = own_config(config, model, tokenizer), dict(model.state_dict())
    make_folder(folder)
    _write_tensors(folder / "model.safetensors", tensors)
    for name, data in _tokenizer_files(tokenizer, int(config["model"]["max_len"]), template).items():
        (write_text if isinstance(data, str) else write_json)(folder / name, data)
    # Where there is a decoder, `generate` begins its output with this id.
    starts = {key: settings[key] for key in ("decoder_start_token_id",) if key in settings}
    # An answer ends with the template's sign, any other text with eos; `generate` stops at either.
    stops = list(
        dict.fromkeys([tokenizer.eos if template is None else sign_id(tokenizer, template.end), tokenizer.eos])
    )
    last = stops if len(stops) > 1 else tokenizer.eos
    start = start_id(tokenizer)
    ends = {"bos_token_id": start, "eos_token_id": last, "pad_token_id": tokenizer.eos}
    settings = settings | {"bos_token_id": start}
    write_json(folder / "generation_config.json", {**ends, **starts})
    write_json(folder / "config.json", settings)  # last: without it transformers does not load the folder
    return str(settings["model_type"])


def family_for(config: Mapping[str, Any], tokenizer: Tokenizer, kind: str | None) -> Family | None:
    """Return the transformers family to export as: the one that fits, or the requested `kind`; None: ablatio's class.

    Raises UserError if `kind` is unknown or does not fit, or if an encoder-decoder is not a T5.
    """
    arguments = (config, tokenizer.vocab_size, tokenizer.eos)
    if kind is None:
        found = family_of(*arguments)
    elif kind == OWN:
        found = None
    else:
        known = {family.model_type: family for family in FAMILIES}
        if kind not in known:
            raise UserError(f"unknown class {kind}; expected one of {', '.join((*known, OWN))}\n    try: --as {OWN}")
        found = known[kind](*arguments)
        if reasons := found.incompatibilities():
            raise UserError(f"{kind} does not support {'; '.join(reasons)}\n    try: --as {OWN}")
    if found is None and len(architectures[config["architecture"]["name"]].facts["stacks"]) == 2:
        reasons = incompatibilities(config, tokenizer.vocab_size)["t5"]
        raise UserError(
            f"the only encoder-decoder that can be exported is T5, which does not support {'; '.join(reasons)}\n"
            "    try: ablatio train preset=t5, whose runs can be exported"
        )
    return found


def own_config(config: Mapping[str, Any], model: LanguageModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json of ablatio's own class: all that shapes the model, nothing about its training or data."""
    return {
        "architectures": ["AblatioForCausalLM"],
        "model_type": OWN,
        "vocab_size": model.vocab_size,
        "ids": tokenizer.vocab_size,
        "tie_word_embeddings": bool(config["model"]["tied"]),
        "bos_token_id": tokenizer.eos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": None,
        "parts": {key: config[key] for key in model_keys() if config.get(key) is not None}
        | {"model": {k: v for k, v in config["model"].items() if k not in ORIGIN}}
        | {"objective": _without_folders(config["objective"])},
    }


def _without_folders(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The objective without the path of its teacher, which is private to this machine."""
    return dict(objective) | ({"teacher": "teacher"} if objective.get("teacher") else {})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    pieces, names = tensor_pieces(tensors)
    del names  # tied matrices are stored once; the class that loads them ties them again
    write_pieces(path, pieces)


def _tokenizer_files(tokenizer: Tokenizer, length: int, template: Template | None) -> dict[str, Any]:
    """Content of the tokenizer's files by name; empty if it has no form in the tokenizers library."""
    to_fast = getattr(tokenizer, "fast", None)
    if to_fast is None:
        return {}
    fast, jinja = to_fast(END), getattr(template, "jinja", None)
    end, start = (fast.id_to_token(i) for i in (tokenizer.eos, start_id(tokenizer)))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # Text that looks like a special token is encoded as text. With a chat template this is impossible: transformers
        # renders a whole conversation, special tokens included, as one text.
        "split_special_tokens": jinja is None,
    }
    chat = {} if jinja is None else {"chat_template.jinja": jinja}
    return {"tokenizer.json": fast.to_str(), "tokenizer_config.json": settings} | chat


@torch.no_grad()
def difference(folder: Path, model: LanguageModel) -> float | None:
    """Return the largest difference between the model's logits and those of the exported folder in transformers.

    None if transformers is not installed.
    """
    try:
        from transformers.utils.logging import disable_progress_bar

        from ablatio.interop.transformers_model import load
    except ImportError:
        return None
    disable_progress_bar()
    loaded, has_encoder = load(folder).train(False), hasattr(model, "encoder")
    device = next(model.parameters()).device
    length = min(16, model.model.max_len)
    tokens = torch.randint(model.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if has_encoder else {})
    exported_logits = loaded(**inputs).logits
    return float((model(tokens.to(device)).cpu() - exported_logits).abs().max())
