"""An adapter as the library peft loads it, beside the base model that `export` writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.interop.families.base import Family
from ablatio.model.peft.merge import base_of
from ablatio.registry.kinds import Peft
from ablatio.storage.atomic_write import make_folder, write_json, write_pieces
from ablatio.storage.safetensors_io import tensor_pieces

ROOT = "base_model.model."


def export_adapter(folder: Path, model: nn.Module, part: Peft, family: Family | None) -> str:
    """adapter_config.json and adapter_model.safetensors; why not, where they cannot be written.

    A part says its own by `to_peft(model)`: peft's config, {path: {name: tensor}}, and the names that follow the
    layer's rows, which a family of transformers may keep in another order; None: where rows stand is not known, and
    they may not be moved.  A path "" holds tensors under their whole names.
    """
    said = part.to_peft(model) if hasattr(part, "to_peft") else None
    if said is None:
        return "the library peft has no such form"
    config, layers, by_row = said
    tensors = dict(layers.get("", {}))
    paths = [path for path in layers if path]
    try:
        if family is not None:
            _refuse_other_layers(family, model, paths, moved=by_row is not None)
        for path in paths:
            for name, tensor in layers[path].items():
                follows = family is not None and name in (by_row or ()) and len(tensor) == _rows(model, path)
                tensors[f"{ROOT}{path}.{name}"] = _in_rows_of(family, path, tensor) if follows else tensor
    except OtherLayer as error:
        return f"{error}; --as ablatio keeps it as it is"
    make_folder(folder)
    held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_pieces(folder / "adapter_model.safetensors", tensor_pieces(held)[0])
    write_json(folder / "adapter_config.json", config | ({"target_modules": sorted(paths)} if paths else {}))
    return ""


class OtherLayer(Exception):
    """A layer of ours is another one in a family of transformers."""


def _rows(model: nn.Module, path: str) -> int:
    return len(base_of(model.get_submodule(path)).weight)


def _refuse_other_layers(family: Family, model: nn.Module, paths: Sequence[str], moved: bool) -> None:
    """OtherLayer where the family calls a layer otherwise, or has its rows in another order and they cannot be moved.

    Without layers of its own a method is about keys, which are made by all k_proj.
    """
    every = [path for path, m in model.named_modules() if path.endswith("k_proj")] if not paths and not moved else []
    for path in (*paths, *every):
        rows = torch.arange(float(_rows(model, path)))
        if not moved and not torch.equal(_in_rows_of(family, path, rows), rows):
            raise OtherLayer(f"{family.model_type} of transformers has the rows of {path} in another order")
        _in_rows_of(family, path, rows)


def _in_rows_of(family: Family | None, path: str, tensor: Tensor) -> Tensor:
    """The rows as the family orders and scales those of the layer; OtherLayer where it joins or turns layers."""
    assert family is not None
    matrix = tensor if tensor.dim() == 2 else tensor[:, None]
    found: Mapping[str, Any] = family.to_native({f"{path}.weight": matrix})
    if list(found) != [f"{path}.weight"] or found[f"{path}.weight"].shape != matrix.shape:
        raise OtherLayer(f"{family.model_type} of transformers has {path} in another shape")
    kept: Tensor = found[f"{path}.weight"]
    return kept.view(tensor.shape)
