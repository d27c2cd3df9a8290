"""Options defined by YAML files: sizes, presets, studies and experiments of ablatio and of plugins' conf folders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ablatio.errors import DamagedFile, EnvironmentFault
from ablatio.registry import discovery
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import ContractError, Distribution
from ablatio.storage.json_files import damaged, read_text
from ablatio.storage.paths import shipped

T = TypeVar("T")
_seen: ContextVar[dict[str, Any] | None] = ContextVar("seen", default=None)

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
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
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


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings in a YAML file as plain values; DamagedFile if it holds something else.

    Keys that would build objects are refused with a ContractError.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast, but not in every build
    text = read_text(path)
    with damaged(str(path), "settings in YAML"):
        try:
            reader = loader(text)
            try:
                data = reader.get_single_data()
            finally:
                reader.dispose()
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from None
    data = {} if data is None else data
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise DamagedFile(f"{path} holds {type(data).__name__}; expected settings, `key: value`")
    discovery.refuse_objects(data, str(path))
    return data


@contextmanager
def read_once() -> Iterator[None]:
    """List the conf folders once inside this context, as one composition asks for their files about 135 times."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def once(key: str, make: Callable[[], T]) -> T:
    """Return what `make` returns; inside `read_once` it is called once for each key."""
    seen = _seen.get()
    if seen is None:
        return make()
    if key not in seen:
        seen[key] = make()
    found: T = seen[key]
    return found


def _folders() -> Iterator[tuple[Path, Distribution]]:
    from ablatio import __version__

    ours = Distribution(OURS, __version__)
    yield shipped("conf"), ours
    for source in discovery.sources():
        if source.conf is not None:
            yield source.conf, source.distribution


def files() -> dict[str, dict[str, File]]:
    """All groups of YAML files and their options; if a name occurs twice, the first file found is used."""
    return once("files", _list_files)


def _list_files() -> dict[str, dict[str, File]]:
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


def broken() -> dict[str, str]:
    """Files that cannot be read: {group/name: why}."""
    found = {}
    for group, options in files().items():
        for name, file in options.items():
            try:
                file.read()
            except (OSError, EnvironmentFault, ContractError) as error:
                found[f"{group}/{name}"] = str(error).splitlines()[0]
    return found
