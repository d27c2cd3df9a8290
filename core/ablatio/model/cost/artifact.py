"""Bytes of a model's artifact: the weights as they are stored and compressed, and the code of its parts."""

import importlib.util
import json
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.registry.registry import REGISTRIES

HALF = 2  # bytes of a floating-point number in the artifact


def stored(model: nn.Module) -> Iterable[Tensor]:
    """Yield the tensors of a model's state, shared ones once."""
    return {t.data_ptr() or id(t): t for t in model.state_dict(keep_vars=True).values()}.values()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the weights before compression: codes as they are, floating-point numbers in 16 bits."""
    return sum(t.numel() * (HALF if t.is_floating_point() else t.element_size()) for t in stored(model))


def compressed_bytes(model: nn.Module) -> int:
    """Bytes of the weights after compression by LZMA, in the order of their names."""
    packed = lzma.LZMACompressor(preset=9)
    count = 0
    for tensor in stored(model):
        held = tensor.detach().cpu()
        held = held.to(torch.bfloat16).view(torch.int16) if held.is_floating_point() else held
        count += len(packed.compress(held.contiguous().numpy().tobytes()))
    return count + len(packed.flush())


def code_bytes(config: Mapping[str, Any]) -> int:
    """Bytes, after compression, of the source files of the parts that shape the model, and of their settings.

    The framework, which is the same for all models, is not counted.
    """
    shaping = [r for r in REGISTRIES.values() if r.scope in ("model", "tuning") and config.get(r.kind)]
    names = [(r, n) for r in shaping for n in _names(config, r.kind) if n in r.names()]
    modules = sorted({r[name].module for r, name in names})
    sources = [Path(spec.origin).read_bytes() for m in modules if (spec := importlib.util.find_spec(m)) and spec.origin]
    settings = {key: config[key] for key in ("model", *(r.kind for r in shaping))}
    return len(lzma.compress(b"".join([*sources, json.dumps(settings, sort_keys=True).encode()]), preset=9))


def _names(config: Mapping[str, Any], kind: str) -> list[str]:
    """Options of a kind: the run's own, and those in lists of `layers`."""
    layers = config.get("layers") or {}
    listed = [*(layers.get(kind) or ()), *((layers.get("at") or {}).get(kind) or {}).values()]
    entries = [next(iter(e)) if isinstance(e, Mapping) else str(e) for e in listed]
    return [str(config[kind]["name"]), *(entry.split("*")[0] for entry in entries)]
