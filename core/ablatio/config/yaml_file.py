"""One YAML file as an option of a group, and how it is read: as plain values that can build no object."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.errors import DamagedFile
from ablatio.registry import discovery
from ablatio.registry.registry import Distribution
from ablatio.storage.json_files import damaged, read_text

# YAML 1.1 takes 3e-4 for text; Hydra's files and the command line take it for a number.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class File:
    """One option of a group: conf/GROUP/NAME.yaml, documented by its leading comment.

    local  True for a file of the user that no distribution provides
    """

    group: str
    name: str
    path: Path
    distribution: Distribution
    local: bool = False

    @property
    def doc(self) -> str:
        """The leading comment, without the lines for Hydra and ablatio (`# @package`, `# @replaces`)."""
        lines = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                lines.append(line.removeprefix("#").removeprefix(" "))
        return "\n".join(lines).strip()

    @property
    def summary(self) -> str:
        """First line of the leading comment."""
        return self.doc.split("\n")[0]

    @property
    def origin(self) -> str:
        """Where it comes from, for errors: a local file's path, or an option of a distribution."""
        return str(shown(self.path)) if self.local else f"{self.group}={self.name} of {self.distribution}"

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

    text = read_text(path)
    with damaged(str(path), "settings in YAML"):
        try:
            reader = _loader()(text)
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


@functools.cache
def _loader() -> Any:
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast, but not in every build
    loader = type("Loader", (base,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))  # type: ignore[attr-defined]
    return loader


def shown(path: Path) -> Path:
    """The path as seen from the working directory."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):  # elsewhere, or the working directory is gone
        return path


def header(path: Path) -> dict[str, str]:
    """Lines `# @key value` at the beginning of a file: `# @package _global_` gives {"package": "_global_"}."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").split()
        if len(words) == 2 and words[0].startswith("@"):
            found[words[0][1:]] = words[1]
    return found
