"""Find packages that the chosen parts of a config need and that are not installed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ablatio.errors import ConfigError
from ablatio.registry.packages import missing
from ablatio.registry.part_spec import PartSpec
from ablatio.registry.registry import REGISTRIES


def parts_of(config: Mapping[str, Any]) -> Iterator[PartSpec]:
    """Yield the chosen parts of a checked config that a run of it uses."""
    trainer = config.get("trainer") or {}
    alone = trainer.get("devices", 1) * trainer.get("nodes", 1) == 1
    for kind, registry in REGISTRIES.items():
        node = config.get(kind)
        if not isinstance(node, Mapping) or (kind == "strategy" and alone):  # one device needs no strategy
            continue
        names = list(node) if registry.multiple else [str(node.get("name"))]
        yield from (registry.entries[name] for name in names if name in registry.entries)


def check_packages(configs: Iterable[Mapping[str, Any]], others: Iterable[PartSpec] = ()) -> None:
    """Raise ConfigError with everything that is not installed, of all these configs and of `others`, each once."""
    parts = {(p.kind, p.name): p for p in others} | {(p.kind, p.name): p for c in configs for p in parts_of(c)}
    if problems := list(missing(parts.values())):
        raise ConfigError(problems)
