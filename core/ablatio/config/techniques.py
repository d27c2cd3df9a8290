"""Lists of techniques: for each, the settings that choose it, so that one can ask which of a list are there.

    # conf/techniques/attention.yaml of a plugin: what is added to softmax attention
    exclusive self-attention:
      overrides: [attention.exclusive=full]
      source: https://github.com/KellerJordan/modded-nanogpt/pull/264
    sliding-window scoring:
      command: ablatio evaluate RUN --stride 64
    learned chunking of bytes:
      missing: the length of a row would change within the model

A file is one area.  `overrides` are written as for `ablatio train`; a technique that is no setting of a run has the
command that uses it, and one that nothing here can do has the reason.  Sources are optional.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablatio.config import yaml_files
from ablatio.config.words import key_of, value_of
from ablatio.errors import DamagedFile
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES

GROUP = "techniques"
WAYS = ("overrides", "command", "missing")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Technique:
    """One technique of an area, and one way to use it: `overrides`, a `command`, or the reason why it is `missing`."""

    area: str
    name: str
    overrides: tuple[str, ...] = ()
    command: str = ""
    missing: str = ""
    source: str = ""

    @property
    def parts(self) -> list[str]:
        """The options that its overrides choose, as `kind=option`, in order."""
        return [f"{kind}={name}" for kind, name in self._named() if name in REGISTRIES[kind].entries]

    @property
    def origin(self) -> str:
        """Its own source, or that of the one option that it chooses."""
        papers = [p for kind, name in self._named() if (p := getattr(REGISTRIES[kind].entries.get(name), "paper", ""))]
        return self.source or (papers[0] if len(self._named()) == 1 and papers else "")

    @property
    def refused(self) -> str:
        """Why it cannot be chosen here; "" if it can."""
        unknown = [f"there is no {kind}={name}" for kind, name in self._named() if name not in REGISTRIES[kind].entries]
        return self.missing or "; ".join(unknown)

    def _named(self) -> list[tuple[str, str]]:
        """(kind, option) for each option that the overrides name; knobs in lists of layers name none."""
        found = dict[tuple[str, str], None]()
        for text in self.overrides:
            key, value = key_of(text).removeprefix(f"{per_layer.LAYERS}."), value_of(text).strip("'\"")
            if key not in REGISTRIES or value == "null":
                continue
            if value.startswith("["):  # knobs of an entry stand in braces after its name
                value = re.sub(r":\s*\{[^{}]*\}", "", value)
            found |= {(key, name): None for name in _NAME.findall(value)}
        return [*found]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `ablatio list --json`."""
        way = {"overrides": [*self.overrides]} if self.overrides else {"command": self.command} if self.command else {}
        there = {"there": not self.refused} | ({"why": self.refused} if self.refused else {})
        return {"name": self.name, **way, **there, "parts": self.parts, "source": self.origin}


def areas() -> dict[str, list[Technique]]:
    """Techniques by area, from all installed distributions and the user's own files."""
    return {name: list(_read(file)) for name, file in yaml_files.options_of(GROUP).items()}


def by_part() -> dict[str, list[str]]:
    """Names of techniques, as `area: technique`, by the part that they choose: {"attention=nsa": [...]}."""
    found = dict[str, list[str]]()
    for area, techniques in areas().items():
        for technique in techniques:
            for part in technique.parts:
                found.setdefault(part, []).append(f"{area}: {technique.name}")
    return found


def _read(file: yaml_files.File) -> Iterator[Technique]:
    """The techniques of a file; DamagedFile names what is wrong with the first that is not one."""
    for name, said in file.read().items():
        way = [key for key in WAYS if isinstance(said, Mapping) and said.get(key)]
        if len(way) != 1 or said.keys() - {*WAYS, "source"}:
            expected = "one of overrides: [...], command: ... and missing: ..., and source: ... if there is one"
            raise DamagedFile(f"{file.origin}: `{name}` has {said!r}; expected {expected}")
        if "overrides" in said and not (isinstance(said["overrides"], list) and all(map(_is_text, said["overrides"]))):
            raise DamagedFile(f"{file.origin}: `{name}`: overrides are a list of settings, got {said['overrides']!r}")
        if not all(_is_text(said[key]) for key in said if key != "overrides"):
            raise DamagedFile(f"{file.origin}: `{name}`: command, missing and source are texts, got {said!r}")
        yield Technique(file.name, name, **{**said, "overrides": tuple(said.get("overrides", ()))})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
