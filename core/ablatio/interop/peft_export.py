"""Export of an adapter in the format of the peft library, for the base model that `export` writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.interop.families.base import Family
from ablatio.model.peft.adapters import base_of
from ablatio.registry.kinds import Peft
from ablatio.storage.atomic_write import make_folder, write_json, write_pieces
from ablatio.storage.safetensors_io import tensor_pieces

ROOT = "base_model.model."


def export_adapter(folder: Path, model: nn.Module, part: Peft, family: Family | None) -> str:
    """Write adapter_config.json and adapter_model.safetensors; return "", or why they cannot be written.

    A part provides `to_peft(model)`: peft's config, {path: {name: tensor}}, and the names of tensors whose rows belong
    to the layer's rows, which a transformers family may order differently; None instead of names: the meaning of the
    rows is unknown, so they must not be moved. The path "" holds tensors under their full names.
    """
    exported = part.to_peft(model) if hasattr(part, "to_peft") else None
    if exported is None:
        return "the peft library has no equivalent of this method"
    config, layers, by_row = exported
    tensors = dict(layers.get("", {}))
    paths = [path for path in layers if path]
    try:
        if family is not None:
            _refuse_other_layers(family, model, paths, moved=by_row is not None)
        for path in paths:
            for name, tensor in layers[path].items():
                follows = family is not None and name in (by_row or ()) and len(tensor) == _rows(model, path)
                tensors[f"{ROOT}{path}.{name}"] = _in_rows_of(family, path, tensor) if follows else tensor
    except LayerMismatch as error:
        return f"{error}; use --as ablatio to keep the layout"
    make_folder(folder)
    held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_pieces(folder / "adapter_model.safetensors", tensor_pieces(held)[0])
    write_json(folder / "adapter_config.json", config | ({"target_modules": sorted(paths)} if paths else {}))
    return ""


class LayerMismatch(Exception):
    """A transformers family stores a layer differently, so its adapter cannot be converted."""


def _rows(model: nn.Module, path: str) -> int:
    return len(base_of(model.get_submodule(path)).weight)


def _refuse_other_layers(family: Family, model: nn.Module, paths: Sequence[str], moved: bool) -> None:
    """Raise LayerMismatch if the family renames a layer, or reorders rows that must not be moved.

    A method without layers (prefixes) works on keys, so all k_proj are checked.
    """
    every = [path for path, m in model.named_modules() if path.endswith("k_proj")] if not paths and not moved else []
    for path in (*paths, *every):
        rows = torch.arange(float(_rows(model, path)))  # numbered rows show whether the family moves any
        if not moved and not torch.equal(_in_rows_of(family, path, rows), rows):
            raise LayerMismatch(f"{family.model_type} of transformers orders the rows of {path} differently")
        _in_rows_of(family, path, rows)


def _in_rows_of(family: Family | None, path: str, tensor: Tensor) -> Tensor:
    """Order and scale rows as the family does those of the layer; LayerMismatch if it joins or transposes layers."""
    assert family is not None
    matrix = tensor if tensor.dim() == 2 else tensor[:, None]
    found: Mapping[str, Any] = family.to_native({f"{path}.weight": matrix})
    if list(found) != [f"{path}.weight"] or found[f"{path}.weight"].shape != matrix.shape:
        raise LayerMismatch(f"{family.model_type} of transformers stores {path} in another shape")
    kept: Tensor = found[f"{path}.weight"]
    return kept.view(tensor.shape)
