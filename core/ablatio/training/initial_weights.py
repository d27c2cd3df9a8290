"""Initial weights of a run: drawn from the seed, or copied from a run folder or a transformers folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.config.compose import compose_run
from ablatio.config.from_transformers import HINT
from ablatio.config.inherit import folder_of
from ablatio.config.words import override_text
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.apply import is_tuned
from ablatio.model.peft.merge import bare_base, merge
from ablatio.model.quantized import dequantize
from ablatio.registry import kinds
from ablatio.storage.paths import shell_word
from ablatio.training.restore import SavedRun, read_checkpoint, restore_model
from ablatio.training.run_folder import refuse_living

ROWS = ("embed_tokens.weight", "lm_head.weight")  # one row per token id: the rows that both have are copied


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Which weights of a model were copied from another one.

    origin  the folder that they came from
    taken   names of the copied weights
    anew    names of the weights that keep their initialization, because nothing in the origin fits
    unused  names of the origin's weights for which this model has no place, because parts were replaced
    """

    origin: str
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = len(self.taken) + len(self.anew)
        text = f"{len(self.taken)} of {total} tensors come from {self.origin}"
        for what, names in (("initialized anew", self.anew), ("without a place here", self.unused)):
            shown = ", ".join(names[:3]) + (f" ... ({len(names)})" if len(names) > 3 else "")
            text += f"; {what}: {shown}" if names else ""
        return text


def start_model(
    config: Mapping[str, Any], tokenizer: Tokenizer, seed: int, *, fresh: bool = True
) -> tuple[LanguageModel, TakenOver | None]:
    """Build the model of a config with the weights that its training starts from, and report what was copied.

    Drawn weights depend on the parameter's name and the seed alone.

    fresh  False if a checkpoint will be loaded into the model: then nothing is copied from its origin
    """
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos, seed)
    return model, take_over(model, config["model"], config.get("peft")) if fresh else None


@torch.no_grad()
def take_over(
    model: LanguageModel, settings: Mapping[str, Any], peft: Mapping[str, Any] | None = None
) -> TakenOver | None:
    """Copy the weights of the model's origin (`model.start`, `model.path`) into it; None with start=scratch.

    peft  method of the new run, if `continue_tokens` is called after it was applied

    Raises UserError if no weight fits: then the origin is a different architecture.
    """
    if settings["start"] == "scratch":
        return None
    folder = folder_of(settings["path"])
    refuse_living(folder, "model.path")
    found = _of_run(folder, peft) if settings["start"] == "run" else _of_hf(folder)
    taken, anew = list[str](), list[str]()
    own = model.state_dict()
    _refuse_several_values(own, found, folder)
    for name, weight in own.items():
        fits = name in found and _copy(weight, found[name], name)
        (taken if fits else anew).append(name)
    if not taken:
        theirs, ours = next(iter(found)), next(iter(model.state_dict()))
        start = f"ablatio train model={settings['start']} model.path={shell_word(folder)}"
        raise UserError(
            f"no weight of {folder} fits this model: it has {theirs} ..., this model has {ours} ...\n"
            f"    try: {start}, without other parts"
        )
    return TakenOver(str(folder), tuple(taken), tuple(anew), tuple(name for name in found if name not in own))


@torch.no_grad()
def continue_tokens(model: LanguageModel, config: Mapping[str, Any], origin: TakenOver | None) -> TakenOver | None:
    """Copy the virtual tokens of the run that this one starts from, after its peft method was applied to the model.

    They are continued if both runs have the same method with equal settings: a prompt that was trained on several tasks
    is then the start of each (arXiv:2110.07602).  Returns `origin` with the copied weights.
    """
    if origin is None or config["model"]["start"] != "run" or not _has_tokens(config):
        return origin
    found = _tokens_of(read_checkpoint(folder_of(config["model"]["path"])), config["peft"])
    own = model.state_dict()
    for name, tensor in found.items():
        own[name].copy_(tensor)
    return replace(origin, taken=(*origin.taken, *found))


def _has_tokens(config: Mapping[str, Any]) -> bool:
    """True if the peft method adds virtual tokens."""
    node = config.get("peft") or {"name": kinds.pefts.default}
    return bool(kinds.pefts[str(node["name"])].facts["virtual"])


def _tokens_of(saved: SavedRun, peft: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Virtual tokens of a run, if its method is `peft` and has trained nothing else; else empty."""
    if not _has_tokens(saved.spec.config) or saved.spec.config["peft"] != peft:
        return {}
    weights = saved.checkpoint.model
    adapted = any(".adapter." in name for name in weights)
    return {} if adapted else {name: t for name, t in weights.items() if ".virtual." in name}


def _refuse_several_values(own: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    """Raise UserError if weights that are one tensor here (a tied head, shared layers) differ in the origin.

    Layers that shared their weights no longer do after adapters were merged into them.
    """
    first = dict[int, str]()
    for name, weight in own.items():
        other = name if weight.is_meta else first.setdefault(weight.data_ptr(), name)
        if name in found and other in found and not torch.equal(found[name], found[other]):
            raise UserError(
                f"{other} and {name} share one weight in this model, but have different weights in {folder}\n"
                f"    try: {'model.tied=false' if name.startswith('lm_head') else 'model.distinct_layers=null'}"
            )


def _copy(weight: Tensor, source: Tensor, name: str) -> bool:
    """Copy a weight if the shapes allow it, rows of ROWS as far as both have them; True if it was copied."""
    if weight.shape == source.shape:
        weight.copy_(source)
        return True
    if name.endswith(ROWS) and weight.shape[1:] == source.shape[1:]:
        rows = min(len(weight), len(source))
        weight[:rows].copy_(source[:rows])
        return True
    return False


def _of_run(folder: Path, peft: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Weights of a run folder, for a new run with this peft method."""
    saved = read_checkpoint(folder)
    if not is_tuned(saved.spec.config):
        return saved.checkpoint.model
    model = restore_model(folder).model
    # A new run starts from plain weights: undo the quantization and merge the adapters.
    dequantize(model)
    if _tokens_of(saved, peft):
        bare_base(model)
    elif _tokens_of(saved, saved.spec.config.get("peft")):
        words = " ".join(_words(saved.spec.config["peft"]))
        raise UserError(
            f"{folder} has virtual tokens, which cannot be merged into weights; the same method continues them\n"
            f"    try: {words}"
        )
    merge(model)
    return dict(model.state_dict())


def _words(peft: Mapping[str, Any]) -> Iterator[str]:
    """Overrides that choose a peft method with its settings."""
    yield f"peft={peft['name']}"
    defaults = kinds.pefts[str(peft["name"])].defaults
    for knob, value in peft.items():
        if knob != "name" and value != defaults.get(knob):
            yield shell_word(f"peft.{knob}={override_text(value)}")


def _of_hf(folder: Path) -> dict[str, Tensor]:
    """Weights of a transformers folder, under this package's names."""
    import json

    from ablatio.interop.compare import check_loaded
    from ablatio.interop.families import reader_of

    # The folder's own parts, whichever of them the new run replaces: its tensors are named after them.
    config = compose_run(["model=hf", f"model.path='{folder}'"]).config
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = int(theirs["vocab_size"])
    family = reader_of(theirs["model_type"])(config, rows)
    found = family.from_native(_tensors(folder), rescaled=False)  # its scale factors stand in that config
    check_loaded(folder, config, found, rows)
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the folder's safetensors files; floating-point ones as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no weights: a *.safetensors file was expected{HINT}")
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            found |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as a safetensors file: {error}{HINT}") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
