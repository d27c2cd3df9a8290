"""Compare a transformers folder, loaded into ablatio's parts, with transformers' own model of that folder."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.config.from_transformers import HINT
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.on_meta import on_meta
from ablatio.storage.atomic_write import make_folder, write_json
from ablatio.storage.paths import cache_root

ROUNDING = 1e-5  # largest difference of two float32 computations, relative to the largest logit
WRONG = 1e-3  # a larger one is no rounding: the model would be another one
LARGEST = 2**31  # parameters; a larger model is not compared, because both would have to be in memory
log = logging.getLogger("ablatio")


def check_loaded(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], vocab_size: int) -> None:
    """Check that a model with the folder's parts and these weights computes what transformers computes.

    config      config of the folder's own parts
    vocab_size  number of rows of transformers' embedding

    Raises UserError for weights that the parts have no place for, and if the logits of a few tokens differ; a
    difference between ROUNDING and WRONG is logged. The result is remembered in the cache, under the folder's content.
    """
    with on_meta():
        places = build_model(config, vocab_size).state_dict().keys()
    if lost := [name for name in weights if name not in places]:
        raise UserError(
            f"{folder} has weights for which its parts have no place: {', '.join(lost[:4])} ({len(lost)}){HINT}"
        )
    known = cache_root() / "compared" / f"{_content(folder)}.json"
    if known.is_file():
        return
    count = sum(weight.numel() for weight in weights.values())
    if count > LARGEST:
        log.warning("%s: its logits are not compared with transformers', as it has %d parameters", folder, count)
        return
    apart = difference(folder, config, weights, vocab_size)
    if apart is None:
        log.warning("%s: its logits are not compared with transformers', which is not installed", folder)
        return
    # Written so that NaN, which is not above any number, is refused too.
    if not apart <= WRONG:
        raise UserError(
            f"{folder} cannot be read: its logits differ from those of transformers by {apart:.1g} of the largest\n"
            "    try: ablatio fetch smollm2, and report this folder's config.json as a bug"
        )
    if apart > ROUNDING:
        log.warning("%s: its logits differ from those of transformers by %.1g of the largest", folder, apart)
        return  # not remembered: each use of the folder is warned of
    make_folder(known.parent)
    write_json(known, {"folder": str(folder), "apart": apart})


@torch.no_grad()
def difference(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], vocab_size: int) -> float | None:
    """Return the largest difference of logits over the largest logit, for a few random tokens; None: no transformers.

    Both models compute in float32 on the CPU.
    """
    try:
        from transformers.utils.logging import disable_progress_bar

        from ablatio.interop.transformers_model import load
    except ImportError:
        return None
    disable_progress_bar()
    theirs, ours = load(folder).train(False), build_model(config, vocab_size).eval()
    for name, place in ours.state_dict().items():
        if name in weights and place.shape[1:] == weights[name].shape[1:]:
            rows = min(len(place), len(weights[name])) if place.dim() else None
            place[:rows].copy_(weights[name][:rows])
    length = min(12, int(config["model"]["max_len"]))
    tokens = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if hasattr(ours, "encoder") else {})
    expected = theirs(**inputs, use_cache=False).logits.float()
    return float((ours(tokens)[..., :vocab_size] - expected).abs().max() / expected.abs().max())


def _content(folder: Path) -> str:
    """Hash of config.json, of the weight files' names, sizes and times, and of the versions of both libraries."""
    import importlib.metadata as versions

    total = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        state = path.stat()
        total.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    for package in ("ablatio", "transformers", "torch"):
        try:
            total.update(f"{package} {versions.version(package)}\n".encode())
        except versions.PackageNotFoundError:
            total.update(f"{package} none\n".encode())
    return total.hexdigest()[:24]
