"""Where a task's model gets its initial weights: drawn anew, or those of a model that exists where they fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.config.compose import compose_run
from ablatio.config.inherit import folder_of
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.apply import is_tuned
from ablatio.model.peft.merge import merge
from ablatio.model.quantized import dequantize
from ablatio.training.restore import read_checkpoint, restore_model

ROWS = ("embed_tokens.weight", "lm_head.weight")  # a vocabulary may have grown: the rows that there were keep theirs


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Names of weights: those that came from the origin, and those that start anew because nothing fits."""

    origin: str
    taken: tuple[str, ...]
    anew: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.anew)
        text = f"{len(self.taken)} of {total} tensors come from {self.origin}"
        shown = ", ".join(self.anew[:3]) + (" ..." if len(self.anew) > 3 else "")
        return f"{text}; anew: {shown}" if self.anew else text


def start_model(
    config: Mapping[str, Any], tokenizer: Tokenizer, seed: int, *, fresh: bool = True
) -> tuple[LanguageModel, TakenOver | None]:
    """The model of a config before its task's first step, and what it took over; the one place that decides on weights.

    Drawn weights depend on the name of their part and the seed alone.  fresh: False where a checkpoint will fill it.
    """
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos, seed)
    return model, take_over(model, config["model"]) if fresh else None


@torch.no_grad()
def take_over(model: LanguageModel, settings: Mapping[str, Any]) -> TakenOver | None:
    """Fill the model from its origin (`model.start`, `model.path`); None where it has none.

    Raises UserError when nothing fits: then it is another model.
    """
    if settings["start"] == "scratch":
        return None
    folder = folder_of(settings["path"])
    found = weights_of(settings["start"], folder)
    taken, anew = list[str](), list[str]()
    for name, weight in model.state_dict().items():
        fits = name in found and _copy(weight, found[name], name)
        (taken if fits else anew).append(name)
    if not taken:
        theirs, ours = next(iter(found)), next(iter(model.state_dict()))
        raise UserError(f"no weight of {folder} fits this model: it has {theirs} ..., here is {ours} ...")
    return TakenOver(str(folder), tuple(taken), tuple(anew))


def _copy(weight: Tensor, source: Tensor, name: str) -> bool:
    if weight.shape == source.shape:
        weight.copy_(source)
        return True
    if name.endswith(ROWS) and weight.shape[1:] == source.shape[1:]:
        rows = min(len(weight), len(source))
        weight[:rows].copy_(source[:rows])
        return True
    return False


def weights_of(start: str, folder: Path) -> dict[str, Tensor]:
    """The weights in a run folder or in a folder of transformers', under our names."""
    return _of_run(folder) if start == "run" else _of_hf(folder)


def _of_run(folder: Path) -> dict[str, Tensor]:
    saved = read_checkpoint(folder)
    if not is_tuned(saved.spec.config):
        return saved.checkpoint.model
    model = restore_model(folder).model
    dequantize(model)  # its codes become plain numbers, and its adapters part of the weights
    merge(model)
    return dict(model.state_dict())


def _of_hf(folder: Path) -> dict[str, Tensor]:
    import json

    from ablatio.interop.families import reader_of

    config = compose_run(["model=hf", f"model.path='{folder}'"]).config  # its own parts, whatever the run replaces
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = reader_of(theirs["model_type"])(config, int(theirs["vocab_size"]))
    return family.from_native(_tensors(folder), rescaled=False)  # the config that was read has their factors


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no weights: a *.safetensors file was expected")
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            found |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no safetensors file that can be read: {error}") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
