"""Presets: the published combination of a named model, and the sizes that it was published in.

    # BLOOM (BigScience 2022): ALiBi, a norm after the embedding, biases.
    paper: arXiv:2211.05100
    norm: {name: layernorm, eps: 1.0e-5}
    position: alibi
    model: {bias: true, embedding_norm: true}
    published:
      model: {max_len: 2048, vocab_size: 250880}
    sizes:
      176b: {model: {d_model: 14336, n_layers: 70, n_heads: 112}, optimizer: {lr: 6.0e-5}}

A part stands as on the command line, by its name or with knobs.  The knobs hold as long as the part is chosen: with
`norm=rmsnorm` on the command line, those that the preset gives to layernorm are gone.  A size may set the same, and
`published` holds at each of the preset's own sizes: at a size that trains here, what is left open has its default.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.config import schema as run_config
from ablatio.config import yaml_files
from ablatio.errors import Problem
from ablatio.registry.registry import REGISTRIES, ContractError

OWN_KEYS = ("paper", "published", "sizes")


@dataclass(frozen=True, slots=True)
class Preset:
    """parts: option by kind (a list where several may be chosen); settings: all else; sizes: settings by their name."""

    name: str
    paper: str
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]

    def values(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """What the preset sets beside the options that were `chosen`: {size: 176b, norm: layernorm, ...}."""
        found = merged(self.settings, self.sizes.get(chosen.get(yaml_files.SIZE, ""), {}))
        return {key: value for key, value in found.items() if self._stands(key, chosen)}

    def _stands(self, key: str, chosen: Mapping[str, str]) -> bool:
        """Whether the settings of `key` have their meaning: those of a part, as long as it is the preset's own."""
        return (
            key not in REGISTRIES or REGISTRIES[key].multiple or chosen.get(key) == self.parts.get(key, chosen.get(key))
        )


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs in one, section by section; the second has the last word."""
    both = {key: settings[key] | more[key] for key in settings if isinstance(more.get(key), Mapping)}
    return {**settings, **more, **both}


def presets() -> dict[str, Preset]:
    """All presets: ours, and those in the folder that a plugin calls conf/preset."""
    return {name: load(file) for name, file in yaml_files.options_of(yaml_files.PRESET).items()}


def load(file: yaml_files.File) -> Preset:
    return _load(file.name, file.path, file.path.stat().st_mtime_ns)


@functools.cache
def _load(name: str, path: Path, changed: int) -> Preset:
    data = yaml_files.read_yaml(path)
    known = [*OWN_KEYS, *REGISTRIES, *run_config.SECTIONS, *(k.name for k in run_config.section_knobs(run_config.Run))]
    if not isinstance(data, dict) or (unknown := [key for key in data if key not in known]):
        what = f"`{unknown[0]}`" if isinstance(data, dict) else type(data).__name__
        raise ContractError(f"{path}: {what} is nothing that a preset may set; there are {', '.join(known)}")
    parts: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in data.items():
        if key in REGISTRIES:
            named = isinstance(value, dict)
            parts[key] = value["name"] if named else value
            settings |= {key: {k: v for k, v in value.items() if k != "name"}} if named else {}
        elif key not in OWN_KEYS:
            settings[key] = value
    everywhere = data.get("published") or {}
    sizes = {str(size): merged(everywhere, values or {}) for size, values in (data.get("sizes") or {}).items()}
    return Preset(name, str(data.get("paper", "")), parts, settings, sizes)


def sizes() -> dict[str, list[str]]:
    """The sizes that only some presets have, and those presets."""
    found: dict[str, list[str]] = {}
    for preset in presets().values():
        for size in preset.sizes:
            found.setdefault(size, []).append(preset.name)
    return {size: names for size, names in found.items() if size not in yaml_files.options_of(yaml_files.SIZE)}


def size_problem(size: str | None, preset: str | None) -> Problem | None:
    """Why this preset (or none) cannot have this size."""
    having = sizes().get(size or "")
    if having is None or preset in having:
        return None
    if preset is None:
        what = f"{size} is a size of preset={having[0]}, and no preset came"
        return Problem(yaml_files.PRESET, what, f"preset={having[0]}")
    own, plain = [*presets()[preset].sizes], [*yaml_files.options_of(yaml_files.SIZE)]
    what = f"preset={preset} was not published at {size}; it has {', '.join(own)}, and {', '.join(plain)}"
    return Problem(yaml_files.SIZE, what, f"size={(own or plain)[0]}")
