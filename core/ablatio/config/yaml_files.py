"""Options that are YAML files: sizes, presets, studies, experiments; ours, and those in the conf folders of plugins."""

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
    """One option of a group: conf/GROUP/NAME.yaml; its leading comment says what it is."""

    group: str
    name: str
    path: Path
    distribution: Distribution

    @property
    def doc(self) -> str:
        """The comment that the file begins with, less Hydra's own first line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.removeprefix("#").removeprefix(" "))
        return "\n".join(lines).strip()

    @property
    def summary(self) -> str:
        return self.doc.split("\n")[0]

    def read(self) -> Any:
        """Its content, plain values; keys that would build objects are refused."""
        return read_yaml(self.path)

    def to_json(self) -> dict[str, Any]:
        who = {"dist": self.distribution.name, "version": self.distribution.version}
        return {"kind": self.group, "name": self.name, "doc": self.doc, **who}


def read_yaml(path: Path) -> Any:
    """A YAML file of plain values; keys that would build objects are refused."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: ten times as fast; some builds come without it
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
    """All groups of YAML files and their options; the first that has a name keeps it."""
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
    return files().get(group, {})
