"""The registries as Hydra options, through the scheme `registry://`; and the YAML files that stand beside them."""

from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ablatio import config as run_config
from ablatio import plugins
from ablatio.paths import shipped
from ablatio.registry import REGISTRIES

BASE = "settings"


class RegistrySource(ConfigSource):
    """Each part is the option `<kind>/<name>`, made when it is chosen; `settings` has the sections' defaults."""

    @staticmethod
    def scheme() -> str:
        return "registry"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        path = config_path.strip("/")
        return path in REGISTRIES or path in ("", run_config.SWEEP)

    def is_config(self, config_path: str) -> bool:
        path = _bare(config_path)
        kind, _, name = path.partition("/")
        if kind == run_config.SWEEP:
            return name in sweep_files()
        return path == BASE or (kind in REGISTRIES and name in REGISTRIES[kind].entries)

    def load_config(self, config_path: str) -> ConfigResult:
        path = _bare(config_path)
        if not self.is_config(path):
            raise ConfigLoadError(f"there is no {path}")
        kind, _, name = path.partition("/")
        package: str | None = None
        if path == BASE:
            content: Any = run_config.defaults()
        elif kind == run_config.SWEEP:
            content, package = read_yaml(sweep_files()[name]), "_global_"
        else:
            entry = REGISTRIES[kind].entries[name]
            content = entry.defaults
            if REGISTRIES[kind].many:
                package = f"{kind}.{name}"
            else:
                content = {"name": name} | content
        # Flags on DictConfig do not matter here: our own check looks at every value after the composition.
        return ConfigResult("registry", "registry://", OmegaConf.create(content), {"package": package})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        path = config_path.strip("/")
        groups = [*REGISTRIES, run_config.SWEEP] if path == "" and results_filter != ObjectType.CONFIG else []
        if results_filter == ObjectType.GROUP:
            return sorted(groups)
        if path == run_config.SWEEP:
            return sorted(sweep_files())
        return sorted(REGISTRIES[path].entries) if path in REGISTRIES else sorted(groups)


class AblatioSearchPath(SearchPathPlugin):
    """The registries, then the YAML folders of plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ablatio", "registry://")
        for source in plugins.sources():
            if source.conf is not None and source.provider.dist != "ablatio":
                search_path.append(source.provider.dist, f"file://{source.conf}")


def _bare(path: str) -> str:
    return path.strip("/").removesuffix(".yaml")


def read_yaml(path: Path) -> Any:
    """A YAML file of plain values; keys that would build objects are refused."""
    import yaml

    data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    plugins.refuse_objects(data, str(path))
    return data


def sweep_files() -> dict[str, Path]:
    """Studies by name: ours, and those in the folder that a plugin calls conf/sweep."""
    found = {p.stem: p for p in sorted(shipped("sweeps").glob("*.yaml"))}
    for source in plugins.sources():
        if source.conf is not None:
            found |= {p.stem: p for p in sorted((source.conf / run_config.SWEEP).glob("*.yaml")) if p.stem not in found}
    return found


def register_with_hydra() -> None:
    """Make Hydra know the registries; once."""
    plugins.load()
    if RegistrySource not in Plugins.instance().discover(ConfigSource):
        Plugins.instance().register(RegistrySource)
        Plugins.instance().register(AblatioSearchPath)


def groups() -> dict[str, list[str]]:
    """All groups and their options: kinds, sweeps, and the YAML folders of ours and of plugins."""
    found: dict[str, list[str]] = {kind: sorted(r.entries) for kind, r in REGISTRIES.items()}
    found[run_config.SWEEP] = sorted(sweep_files())
    for folder in [shipped("conf"), *(s.conf for s in plugins.sources() if s.conf is not None)]:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != "." and path.stem not in found.setdefault(group, []):
                found[group].append(path.stem)
    return found
