"""Folders with the weights of a PEFT method, verified on reading and refused for any other base model.

adapter.json         the method and its knobs, the digest of its base model, the digest of the tensors
adapter.safetensors  the tensors, under their names in the model
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import DamagedFile, UserError
from ablatio.storage.atomic_write import make_folder, write_json, write_pieces
from ablatio.storage.json_files import damaged, read_object
from ablatio.storage.paths import shell_word
from ablatio.storage.safetensors_io import read_tensors, tensor_pieces

INDEX, TENSORS, FORMAT = "adapter.json", "adapter.safetensors", 1


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that do not belong to the base: trainable ones, and buffers that the method added."""
    trains = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name in trains or _is_added(name)}


def _is_added(name: str) -> bool:
    return ".adapter." in f".{name}" or ".virtual." in f".{name}"


def base_digest(model: nn.Module) -> str:
    """Return a sha256 over the names, dtypes, shapes and bytes of the base's (frozen) tensors."""
    own, total = learned(model), hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in own:  # dtype and shape belong to the digest: equal bytes may be another matrix
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_adapter(folder: Path, model: nn.Module, choice: Mapping[str, Any], of: str = "") -> None:
    """Write an adapter folder.

    choice: the method as in a config, {name, knobs ...}; of: the settings that select its base model.
    """
    make_folder(folder)
    pieces, names = tensor_pieces(learned(model))
    record = {**write_pieces(folder / TENSORS, pieces), "names": names}
    index = {"format": FORMAT, "peft": dict(choice), "base": base_digest(model), "of": of, "tensors": record}
    write_json(folder / INDEX, index)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and verify an adapter folder: its index and tensors.

    Raises UserError if it is not an adapter folder, DamagedFile if its content changed.
    """
    try:
        index = read_object(folder / INDEX, {"peft": dict, "base": str, "of": str, "tensors": dict})
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not an adapter folder: it has no {INDEX}\n"
            f"    try: ablatio export RUN --adapter {shell_word(folder)}"
        ) from None
    except DamagedFile as error:
        raise DamagedFile(f"{error}\n"
                          f"    try: ablatio export RUN --adapter {shell_word(folder)}-2") from None  # fmt: skip
    with damaged(str(folder), f"what `ablatio export` writes: {INDEX} and {TENSORS}"):
        try:
            _ = index["peft"]["name"], index["base"]
            return index, read_tensors(folder / TENSORS, index["tensors"])
        except OSError as error:
            raise ValueError(f"{TENSORS}: {error.strerror}") from None


@torch.no_grad()
def load_adapter(folder: Path, model: nn.Module) -> None:
    """Load adapter weights into a model to which the same method was applied.

    Raises UserError if the base model or the method's settings differ.
    """
    index, tensors = read_adapter(folder)
    refuse_other_base(folder, index, model)
    own = learned(model)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise UserError(
            f"{folder} was trained with peft={index['peft'].get('name')} and settings that differ from this model's\n"
            f"    try: the settings in {folder / INDEX}"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def refuse_other_base(folder: Path, index: Mapping[str, Any], model: nn.Module) -> None:
    """Raise UserError unless the model's frozen weights are those with which the adapter was trained."""
    if index["base"] != (came := base_digest(model)):
        base = index.get("of") or "model=run model.path=RUN, the run on which it was trained"
        raise UserError(
            f"{folder} was trained on another base model: the digest of its weights is {index['base'][:12]}, that of "
            f"these is {came[:12]}\n    try: {base}"
        )
