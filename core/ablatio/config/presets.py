"""Presets: the published combination of parts of a named model, and the sizes in which it was published.

    # BLOOM (BigScience 2022): ALiBi, a norm after the embedding, biases.
    paper: arXiv:2211.05100
    norm: {name: layernorm, eps: 1.0e-5}
    position: alibi
    model: {bias: true, embedding_norm: true}
    published:
      model: {max_len: 2048, vocab_size: 250880}
    sizes:
      176b: {model: {d_model: 14336, n_layers: 70, n_heads: 112}, optimizer: {lr: 6.0e-5}}

A part is written as on the command line, by its name or with knobs.  The knobs apply while that part is chosen: with
`norm=rmsnorm` on the command line, the knobs that the preset sets for layernorm are dropped.  A size may set the same
keys.  `published` applies to each of the preset's own sizes; other sizes keep the defaults for these settings.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.config import schema as run_config
from ablatio.config import yaml_files
from ablatio.errors import DamagedFile, EnvironmentFault, Problem
from ablatio.registry.per_layer import AT, LAYERS
from ablatio.registry.registry import REGISTRIES, ContractError
from ablatio.storage.json_files import short_error

OWN_KEYS = ("paper", "published", "sizes")


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset file.

    parts: option by kind (a list where several may be chosen)
    settings: all other settings, by section
    sizes: settings of each published size, by its name
    """

    name: str
    paper: str
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]

    def values(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        """The preset's settings that apply to the `chosen` options: {size: 176b, norm: layernorm, ...}."""
        found = merged(self.settings, self.sizes.get(chosen.get(yaml_files.SIZE, ""), {}))
        kept = {key: value for key, value in found.items() if self._stands(key, chosen)}
        return kept | ({LAYERS: self._layers(kept[LAYERS], chosen)} if LAYERS in kept else {})

    def _layers(self, layers: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
        """The options per layer of the kinds for which the preset's own option is chosen."""
        own = {key: value for key, value in layers.items() if key != AT and self._stands(key, chosen)}
        return own | {AT: {key: value for key, value in (layers.get(AT) or {}).items() if self._stands(key, chosen)}}

    def _stands(self, key: str, chosen: Mapping[str, str]) -> bool:
        """True if the settings of `key` apply: those of a part do while the chosen part is the preset's own."""
        return (
            key not in REGISTRIES or REGISTRIES[key].multiple or chosen.get(key) == self.parts.get(key, chosen.get(key))
        )


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two configs section by section; the second takes precedence."""
    both = {key: settings[key] | more[key] for key in settings if isinstance(more.get(key), Mapping)}
    return {**settings, **more, **both}


def presets() -> dict[str, Preset]:
    """All presets by name: those of ablatio, and those in the folder conf/preset of plugins; without broken ones."""
    return _all()[0]


def broken() -> dict[str, str]:
    """Presets that cannot be used, and why; the others work."""
    return _all()[1]


def _all() -> tuple[dict[str, Preset], dict[str, str]]:
    return yaml_files.once("presets", _read_all)


def _read_all() -> tuple[dict[str, Preset], dict[str, str]]:
    good, bad = dict[str, Preset](), dict[str, str]()
    for name, file in yaml_files.options_of(yaml_files.PRESET).items():
        try:
            good[name] = load(file)
        except (OSError, EnvironmentFault, ContractError) as error:
            bad[name] = f"{str(error).splitlines()[0]} (from {file.distribution})"
    return good, bad


def load(file: yaml_files.File) -> Preset:
    """Read a preset file; cached until the file changes."""
    return _load(file.name, file.path, file.path.stat().st_mtime_ns)


@functools.cache
def _load(name: str, path: Path, changed: int) -> Preset:
    data = yaml_files.read_yaml(path)
    try:
        return _preset(name, path, data)
    except ContractError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(f"{path} cannot be read: {short_error(error)}; expected a preset") from None


def _preset(name: str, path: Path, data: Mapping[str, Any]) -> Preset:
    sections, top = [*run_config.SECTIONS, LAYERS], run_config.section_knobs(run_config.Run)
    known = [*OWN_KEYS, *REGISTRIES, *sections, *(k.name for k in top)]
    if unknown := [key for key in data if key not in known]:
        raise ContractError(f"{path}: `{unknown[0]}` is not a setting of a preset; valid: {', '.join(known)}")
    if wrong := [k for k in (*sections, "published", "sizes") if not isinstance(data.get(k) or {}, dict)]:
        raise ContractError(f"{path}: `{wrong[0]}` is {data[wrong[0]]!r}; expected settings, `key: value`")
    parts: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in data.items():
        if key in REGISTRIES:
            named = isinstance(value, dict)
            if not named and not (isinstance(value, str) or (isinstance(value, list) and REGISTRIES[key].multiple)):
                raise ContractError(f"{path}: `{key}` is {value!r}; expected the name of an option, or {{name: ...}}")
            parts[key] = value["name"] if named else value
            settings |= {key: {k: v for k, v in value.items() if k != "name"}} if named else {}
        elif key not in OWN_KEYS:
            settings[key] = value
    everywhere = data.get("published") or {}
    sizes = {str(size): merged(everywhere, values or {}) for size, values in (data.get("sizes") or {}).items()}
    return Preset(name, str(data.get("paper", "")), parts, settings, sizes)


def sizes() -> dict[str, list[str]]:
    """Sizes defined by presets only, with the presets that define them."""
    return yaml_files.once("sizes", _sizes_of_presets)


def _sizes_of_presets() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, preset in presets().items():
        for size in preset.sizes:
            found.setdefault(size, []).append(name)
    of_any_preset = yaml_files.options_of(yaml_files.SIZE)
    return {size: names for size, names in found.items() if size not in of_any_preset}


def size_problem(size: str | None, preset: str | None) -> Problem | None:
    """Problem of a size that this preset (or no preset) does not have; None if it has it."""
    having = sizes().get(size or "")
    if having is None or preset in having:
        return None
    if preset is None:
        what = f"{size} is a size of preset={having[0]}, and no preset is chosen"
        return Problem(yaml_files.PRESET, what, f"preset={having[0]}")
    own, plain = [*presets()[preset].sizes], [*yaml_files.options_of(yaml_files.SIZE)]
    what = f"preset={preset} was not published at {size}; it has {', '.join(own)}, and {', '.join(plain)}"
    return Problem(yaml_files.SIZE, what, f"size={(own or plain)[0]}")
