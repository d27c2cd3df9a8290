"""Options defined by YAML files: sizes, presets, studies and experiments of ablatio and of plugins' conf folders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.registry import discovery
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import Distribution
from ablatio.storage.paths import shipped

SWEEP, PRESET, SIZE = "sweep", "preset", "size"


@dataclass(frozen=True, slots=True)
class File:
    """One option of a group: conf/GROUP/NAME.yaml, documented by its leading comment."""

    group: str
    name: str
    path: Path
    distribution: Distribution

    @property
    def doc(self) -> str:
        """The leading comment, without Hydra's `# @package` line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.removeprefix("#").removeprefix(" "))
        return "\n".join(lines).strip()

    @property
    def summary(self) -> str:
        """First line of the leading comment."""
        return self.doc.split("\n")[0]

    def read(self) -> Any:
        """Content as plain values; keys that would build objects are refused."""
        return read_yaml(self.path)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `ablatio list --json`."""
        who = {"dist": self.distribution.name, "version": self.distribution.version}
        return {"kind": self.group, "name": self.name, "doc": self.doc, **who}


def read_yaml(path: Path) -> Any:
    """Content of a YAML file as plain values; keys that would build objects are refused."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast, but not in every build
    reader = loader(path.read_text(encoding="utf-8"))
    try:
        data = reader.get_single_data() or {}
    finally:
        reader.dispose()
    discovery.refuse_objects(data, str(path))
    return data


def _folders() -> Iterator[tuple[Path, Distribution]]:
    from ablatio import __version__

    ours = Distribution(OURS, __version__)
    yield shipped("conf"), ours
    for source in discovery.sources():
        if source.conf is not None:
            yield source.conf, source.distribution


def files() -> dict[str, dict[str, File]]:
    """All groups of YAML files and their options; if a name occurs twice, the first file found is used."""
    ours = next(_folders())[1]
    found: dict[str, dict[str, File]] = {
        SWEEP: {p.stem: File(SWEEP, p.stem, p, ours) for p in sorted(shipped("sweeps").glob("*.yaml"))}
    }
    for folder, distribution in _folders():
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, {}).setdefault(path.stem, File(group, path.stem, path, distribution))
    return found


def options_of(group: str) -> dict[str, File]:
    """The YAML files of a group, by option name."""
    return files().get(group, {})
