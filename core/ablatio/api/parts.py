"""List of available parts: `ablatio.list_parts`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablatio.config import yaml_files
from ablatio.errors import UserError, did_you_mean
from ablatio.registry import discovery
from ablatio.registry.registry import REGISTRIES, PartSpec


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One option of a kind, or of a group of files such as `preset`.

    summary       what it does, in one line
    knobs         its settings and their defaults: `norm.eps` is the knob `eps` of the chosen norm
    paper         where it comes from, if it says so
    distribution  the package that brings it
    """

    kind: str
    name: str
    summary: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    distribution: str = ""

    def __str__(self) -> str:
        """As the command line chooses it: `norm=rmsnorm`."""
        return f"{self.kind}={self.name}"

    def __repr__(self) -> str:
        return f"<{self}: {self.summary}>"


def list_parts(kind: str | None = None) -> list[PartSummary]:
    """The options of a kind (`norm`, `optimizer`, `preset`, `size`, ...), or of all kinds; no plugin is imported.

        for part in ablatio.list_parts("norm"):
            print(part, part.knobs)

    Raises UserError where there is no such kind.
    """
    check_kind(kind)
    found = [_of_part(entry) for name, r in REGISTRIES.items() if kind in (None, name) for entry in r]
    for group, options in yaml_files.files().items():
        if kind in (None, group):
            found += [PartSummary(group, f.name, f.summary, distribution=str(f.distribution)) for f in options.values()]
    return found


def check_kind(kind: str | None) -> None:
    """Raise UserError if there is no such kind."""
    discovery.load()
    known = [*REGISTRIES, *yaml_files.files()]
    if kind is not None and kind not in known:
        near = did_you_mean(kind, known)
        raise UserError(f"there is no kind `{kind}`{near}\n    there are {', '.join(sorted(known))}")


def _of_part(entry: PartSpec) -> PartSummary:
    return PartSummary(entry.kind, entry.name, entry.summary, entry.defaults, entry.paper, str(entry.distribution))
