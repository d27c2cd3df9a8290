"""List the available options as objects: `ablatio.list_parts`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablatio.config import yaml_files
from ablatio.errors import UserError, did_you_mean
from ablatio.registry import discovery
from ablatio.registry.registry import REGISTRIES, PartSpec


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One option of a kind, or of a group of config files such as `preset`.

    summary       what it does, in one line
    knobs         {knob: default}; `norm.eps` sets the knob `eps` of the chosen norm
    paper         its source, if it states one
    distribution  the package that provides it
    """

    kind: str
    name: str
    summary: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    distribution: str = ""

    def __str__(self) -> str:
        """Return the setting that chooses it: `norm=rmsnorm`."""
        return f"{self.kind}={self.name}"

    def __repr__(self) -> str:
        return f"<{self}: {self.summary}>"


def list_parts(kind: str | None = None) -> list[PartSummary]:
    """List the options of a kind (`norm`, `preset`, `size`, ...), or of all kinds, without importing plugins.

        for part in ablatio.list_parts("norm"):
            print(part, part.knobs)

    Raises UserError for an unknown kind.
    """
    check_kind(kind)
    found = [_of_part(entry) for name, r in REGISTRIES.items() if kind in (None, name) for entry in r]
    for group, options in yaml_files.files().items():
        if kind in (None, group):
            found += [PartSummary(group, f.name, f.summary, distribution=str(f.distribution)) for f in options.values()]
    return found


def check_kind(kind: str | None) -> None:
    """Raise UserError if `kind` is neither None nor a kind or group."""
    discovery.load()
    known = [*REGISTRIES, *yaml_files.files()]
    if kind is not None and kind not in known:
        near = did_you_mean(kind, known)
        raise UserError(
            f"there is no kind `{kind}`{near}\n    there are {', '.join(sorted(known))}\n    try: ablatio list"
        )


def _of_part(entry: PartSpec) -> PartSummary:
    return PartSummary(entry.kind, entry.name, entry.summary, entry.defaults, entry.paper, str(entry.distribution))
