"""An adapter as the library peft loads it, beside the base model that `export` writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.kinds import Peft
from ablatio.native.family import Family
from ablatio.tensorfile import tensor_pieces
from ablatio.writer import make_folder, write_json, write_pieces

ROOT = "base_model.model."


def export_adapter(folder: Path, model: nn.Module, part: Peft, family: Family | None) -> bool:
    """adapter_config.json and adapter_model.safetensors; False where peft has no such format.

    A part says its own by `to_peft(model)`: peft's config, {path: {name: tensor}} and the names that follow the layer's
    rows, which a family of transformers may keep in another order.
    """
    if not hasattr(part, "to_peft"):
        return False
    config, layers, by_row = part.to_peft(model)
    tensors = {}
    for path, held in layers.items():
        for name, tensor in held.items():
            kept = tensor if family is None or name not in by_row else _in_rows_of(family, path, tensor)
            tensors[f"{ROOT}{path}.{name}"] = kept
    make_folder(folder)
    write_pieces(folder / "adapter_model.safetensors", tensor_pieces(tensors)[0])
    write_json(folder / "adapter_config.json", {**config, "target_modules": sorted(layers)})
    return True


def _in_rows_of(family: Family, path: str, tensor: Tensor) -> Tensor:
    """The rows as the family orders and scales those of the layer; UserError where it joins or turns layers."""
    matrix = tensor if tensor.dim() == 2 else tensor[:, None]
    found: Mapping[str, Any] = family.to_native({f"{path}.weight": matrix})
    if list(found) != [f"{path}.weight"] or found[f"{path}.weight"].shape != matrix.shape:
        raise UserError(
            f"{family.model_type} of transformers keeps {path} in another shape, and a low-rank change cannot follow\n"
            "    try: --as ablatio"
        )
    kept: Tensor = found[f"{path}.weight"]
    return kept.view(tensor.shape)
