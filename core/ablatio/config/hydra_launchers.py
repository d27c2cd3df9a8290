"""Our sweeper and the kind `launcher` as options of Hydra's own groups, through the scheme `launcher://`."""

from collections.abc import Sequence

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from ablatio.registry.registry import REGISTRIES

SWEEPER, LAUNCHER, OURS = "hydra/sweeper", "hydra/launcher", "ablatio"
PLUGIN = "hydra_plugins.ablatio"  # the namespace where Hydra looks for such classes


class Whole(ConfigResult):
    """A config that is whole: Hydra does not merge it into one of the same name that another plugin has stored."""

    @property
    def is_schema_source(self) -> bool:
        return True

    @is_schema_source.setter
    def is_schema_source(self, value: bool) -> None:
        """What Hydra says of the source."""


class LauncherSource(ConfigSource):
    """`hydra/launcher=NAME` for each part of the kind, before a launcher of the same name that another plugin has."""

    @staticmethod
    def scheme() -> str:
        return "launcher"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("hydra", SWEEPER, LAUNCHER)

    def is_config(self, config_path: str) -> bool:
        return _name(config_path) in self._names(_group(config_path))

    def load_config(self, config_path: str) -> ConfigResult:
        group, name = _group(config_path), _name(config_path)
        if not self.is_config(config_path):
            raise ConfigLoadError(f"there is no {group}={name}")
        if group == SWEEPER:
            content = {"_target_": f"{PLUGIN}.AblatioSweeper"}
        else:
            content = {"_target_": f"{PLUGIN}.AblatioLauncher", "name": name, **REGISTRIES["launcher"][name].defaults}
        return Whole("launcher", "launcher://", OmegaConf.create(content), {"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return [] if results_filter == ObjectType.GROUP else [*self._names(config_path.strip("/"))]

    @staticmethod
    def _names(group: str) -> Sequence[str]:
        if group == LAUNCHER:
            return REGISTRIES["launcher"].names()
        return [OURS] if group == SWEEPER else []


def _group(path: str) -> str:
    return path.strip("/").rpartition("/")[0]


def _name(path: str) -> str:
    return path.strip("/").rpartition("/")[2].removesuffix(".yaml")
