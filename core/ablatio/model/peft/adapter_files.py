"""What PEFT has learned, in a folder of its own: verified on reading, and refused beside another base model.

adapter.json         the method and its knobs, the digest of its base, the digest of the tensors
adapter.safetensors  the tensors, under the names that they have in the model
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import DamagedFile, UserError
from ablatio.storage.atomic_write import make_folder, write_json, write_pieces
from ablatio.storage.safetensors_io import read_tensors, tensor_pieces

INDEX, TENSORS, FORMAT = "adapter.json", "adapter.safetensors", 1


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are not the base's: what trains, and what a method keeps beside it."""
    trains = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name in trains or _is_added(name)}


def _is_added(name: str) -> bool:
    return ".adapter." in f".{name}" or ".virtual." in f".{name}"


def base_digest(model: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of what is frozen."""
    own, total = learned(model), hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in own:
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_adapter(folder: Path, model: nn.Module, choice: Mapping[str, Any], of: str = "") -> None:
    """choice: the method as a config names it, {name, knobs ...}; of: the settings that bring its base."""
    make_folder(folder)
    pieces, names = tensor_pieces(learned(model))
    record = {**write_pieces(folder / TENSORS, pieces), "names": names}
    said = {"format": FORMAT, "peft": dict(choice), "base": base_digest(model), "of": of, "tensors": record}
    write_json(folder / INDEX, said)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_adapter` wrote.  UserError if it is no such folder, DamagedFile if its content changed."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        record = index["tensors"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no adapter: {INDEX} was expected\n    try: ablatio export RUN --adapter {folder}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{folder / INDEX} cannot be read: {error}") from None
    return index, read_tensors(folder / TENSORS, record)


@torch.no_grad()
def load_adapter(folder: Path, model: nn.Module) -> None:
    """Fill a model to which the same method was applied.  UserError if its base or its method is another."""
    index, tensors = read_adapter(folder)
    refuse_other_base(folder, index, model)
    own = learned(model)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise UserError(
            f"{folder} was learned with peft={index['peft'].get('name')} and other settings than this model has\n"
            f"    try: the settings in {folder / INDEX}"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def refuse_other_base(folder: Path, index: Mapping[str, Any], model: nn.Module) -> None:
    """UserError unless the frozen weights are those beside which the adapter was learned."""
    if index["base"] != (came := base_digest(model)):
        its_own = index.get("of") or "model=run model.path=RUN, the run that it was learned on"
        raise UserError(
            f"{folder} was learned beside another base model: its weights have the digest {index['base'][:12]}, these "
            f"have {came[:12]}\n    try: {its_own}"
        )
