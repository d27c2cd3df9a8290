"""Registries and presets as Hydra config groups, through the scheme `registry://`."""

from collections.abc import Collection
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ablatio.config import kind_lists, local_files, presets, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.yaml_file import header
from ablatio.registry import discovery, per_layer
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import shipped

BASE = "settings"
OPEN = "__open__"  # placeholder option without knobs, for kinds that each arm chooses (config.compose_many)
VALUES = "preset_values"  # the settings of the preset that apply to the chosen options
MAIN = "train"  # conf/train.yaml, with its lists of kinds expanded


class RegistrySource(ConfigSource):
    """Hydra config source: each part is the option `<kind>/<name>`; `settings` has the defaults of the sections.

    The user's own YAML files are read here too, after their checks: no local folder is on Hydra's search path.

    conf/train.yaml is read through this source too: its entries `kinds`, `preset_values` and `launcher` are replaced by
    lines generated from the registries, so that no file names a kind.

    A preset chooses parts; its settings follow in `preset_values`, when all choices are known.  A size that belongs to
    presets only leaves the sizes open, for the preset to set.
    """

    @staticmethod
    def scheme() -> str:
        return "registry"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        path = config_path.strip("/")
        known = ("", run_config.SWEEP, yaml_files.PRESET, yaml_files.SIZE, VALUES)
        return path in REGISTRIES or path in known or bool(_local(path))

    def is_config(self, config_path: str) -> bool:
        group, _, name = _bare(config_path).partition("/")
        return (
            name in self._names(group)
            or name in _local(group)
            or (group in (BASE, MAIN) and not name)
            or (name == OPEN and group in REGISTRIES)
            or (group == VALUES and _split(name)[0] in presets.presets())
        )

    def load_config(self, config_path: str) -> ConfigResult:
        path = _bare(config_path)
        if not self.is_config(path):
            raise ConfigLoadError(f"there is no config {path}")
        group, _, name = path.partition("/")
        content, package = _content_of_file(group, name) or _content(group, name)
        # Struct and read-only flags are left off: ablatio checks every value after the composition.
        return ConfigResult("registry", "registry://", OmegaConf.create(content), {"package": package})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        path = config_path.strip("/")
        top = {*REGISTRIES, run_config.SWEEP, yaml_files.PRESET, yaml_files.SIZE}
        if results_filter == ObjectType.GROUP or path == "":
            return sorted(top) if path == "" and results_filter != ObjectType.CONFIG else []
        return sorted({*self._names(path), *_local(path)})

    @staticmethod
    def _names(group: str) -> Collection[str]:
        if group == yaml_files.SIZE:
            return presets.sizes()
        if group in (run_config.SWEEP, yaml_files.PRESET):
            return yaml_files.options_of(group)
        return REGISTRIES[group].entries if group in REGISTRIES else ()


def _local(group: str) -> dict[str, yaml_files.File]:
    """The user's own files of a group, which Hydra finds nowhere else; presets and studies are read as all others."""
    if group in (run_config.SWEEP, yaml_files.PRESET):
        return {}
    return {name: file for name, file in yaml_files.options_of(group).items() if file.local}


def _content_of_file(group: str, name: str) -> tuple[Any, str | None] | None:
    """(the config of a file of the user, the package it goes into); None if the option is none of them."""
    file = _local(group).get(name)
    if file is None:
        return None
    data, package = file.read(), header(file.path).get("package", local_files.PACKAGES.get(group))
    part = REGISTRIES[group].entries.get(str(data.get("name"))) if group in REGISTRIES else None
    if part is None or "defaults" in data:
        return data, package
    if REGISTRIES[group].multiple:
        return part.defaults | {k: v for k, v in data.items() if k != "name"}, f"{group}.{part.name}"
    return {"name": part.name} | part.defaults | data, package


def _content(group: str, name: str) -> tuple[Any, str | None]:
    """(the config of an option, the package it goes into)."""
    if group == BASE:
        return run_config.defaults() | {per_layer.LAYERS: per_layer.empty()}, None
    if group == MAIN:
        return main_config(), None
    if group == run_config.SWEEP:
        return yaml_files.options_of(group)[name].read(), "_global_"
    if group == yaml_files.SIZE:
        # Not a number on purpose: without the preset, the type check refuses it.
        open_size = f"set by preset={presets.sizes()[name][0]}"
        return dict.fromkeys(("d_model", "n_layers", "n_heads"), open_size), "model"
    if group == yaml_files.PRESET:
        parts = presets.presets()[name].parts
        return {"defaults": [{f"override /{kind}": option} for kind, option in parts.items()]}, "_global_"
    if group == VALUES:
        preset, chosen = _split(name)
        return presets.presets()[preset].values(chosen), "_global_"
    if name == OPEN:
        return {"name": OPEN}, None
    entry = REGISTRIES[group].entries[name]
    if REGISTRIES[group].multiple:
        return entry.defaults, f"{group}.{name}"
    return {"name": name} | entry.defaults, None


def main_config() -> dict[str, Any]:
    """conf/train.yaml with one entry in its defaults list for each kind."""
    import yaml

    data: dict[str, Any] = yaml.safe_load((shipped("conf") / f"{MAIN}.yaml").read_text(encoding="utf-8"))
    kinds = kind_lists.listed()
    single = [yaml_files.SIZE, *(r.kind for r in kinds if not (r.multiple or r.optional))]
    generated: dict[str, list[dict[str, Any]]] = {
        "kinds": [{r.kind: [*r.usual] if r.multiple else r.usual or None} for r in kinds],
        VALUES: [{f"optional {VALUES}": ",".join(["${preset}", *(f"{kind}=${{{kind}}}" for kind in single)])}],
        "launcher": [{"override hydra/launcher": REGISTRIES["launcher"].usual}],
    }
    lines = (generated.get(line, [line]) if isinstance(line, str) else [line] for line in data["defaults"])
    return data | {"defaults": [entry for entries in lines for entry in entries]}


def _split(name: str) -> tuple[str, dict[str, str]]:
    """`bloom,size=small,norm=layernorm` -> (bloom, {size: small, norm: layernorm})."""
    preset, *choices = name.split(",")
    return preset, dict(choice.split("=", 1) for choice in choices if "=" in choice)


class AblatioSearchPath(SearchPathPlugin):
    """Adds the registries before conf/, whose presets they read, and the YAML folders of plugins after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.prepend("ablatio", "registry://")
        for source in discovery.sources():
            if source.conf is not None and source.distribution.name != "ablatio":
                search_path.append(source.distribution.name, f"file://{source.conf}")


def _bare(path: str) -> str:
    """A config path as `GROUP/OPTION`; the option of a file that was named by its path is that path."""
    group, _, name = path.lstrip("/").partition("/")
    named = name in yaml_files.options_of(group)
    return f"{group}/{name}" if named else path.strip("/").removesuffix(".yaml")


def register_with_hydra() -> None:
    """Register the config sources with Hydra; calling it again has no effect."""
    discovery.load()
    if RegistrySource not in Plugins.instance().discover(ConfigSource):
        Plugins.instance().register(RegistrySource)
        Plugins.instance().register(AblatioSearchPath)


def groups() -> dict[str, list[str]]:
    """All config groups and their options: kinds, and the YAML files of ablatio, of plugins and of the user."""
    found: dict[str, list[str]] = {kind: sorted(r.entries) for kind, r in REGISTRIES.items()}
    for group, files in yaml_files.files().items():
        found[group] = [*found.get(group, []), *(name for name in files if name not in found.get(group, []))]
    found[yaml_files.SIZE] = [*found[yaml_files.SIZE], *presets.sizes()]
    return found
