"""Description of a part without importing it, and the distribution that provides it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ablatio.errors import EnvironmentFault
from ablatio.registry.knobs import Knob
from ablatio.storage.paths import cache_root


class ContractError(TypeError):
    """A part violates the contract of its kind, or its name is taken."""


@dataclass(frozen=True, slots=True)
class PartFault:
    """A part that is left out: its class or function as `module.Name`, and all that is wrong with it."""

    kind: str
    name: str
    place: str
    reason: str


_faults: ContextVar[list[PartFault] | None] = ContextVar("faults", default=None)


@contextmanager
def faulty_parts() -> Iterator[list[PartFault]]:
    """Context manager: a faulty part that is registered inside is left out and listed, and the import goes on.

    Used where ablatio imports a plugin.  Elsewhere `register` raises, so that authors see the line.
    """
    found: list[PartFault] = []
    token = _faults.set(found)
    try:
        yield found
    finally:
        _faults.reset(token)


def leave_out(fault: PartFault) -> bool:
    """List a faulty part; False outside `faulty_parts`, where the error has to be raised."""
    found = _faults.get()
    if found is not None:
        found.append(fault)
    return found is not None


def told_together(where: str, faults: Sequence[str]) -> str:
    """One text for all faults of `where`; a fault may begin with `where` already."""
    bare = [fault.removeprefix(f"{where}: ") for fault in faults]
    if len(bare) == 1:
        return f"{where}: {bare[0]}"
    return f"{where}: {len(bare)} faults" + "".join(f"\n    {fault}" for fault in bare)


@dataclass(frozen=True, slots=True)
class Distribution:
    """The installed distribution that provides a part."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


SESSION = Distribution("this session", "")
_distribution: ContextVar[Distribution] = ContextVar("distribution", default=SESSION)


@contextmanager
def provided_by(distribution: Distribution) -> Iterator[None]:
    """Context manager: parts registered inside belong to `distribution`."""
    token = _distribution.set(distribution)
    try:
        yield
    finally:
        _distribution.reset(token)


def current_distribution() -> Distribution:
    """The distribution that parts registered now belong to."""
    return _distribution.get()


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Everything known about a part without importing it."""

    kind: str
    name: str
    module: str
    qualname: str
    distribution: Distribution
    wiring: tuple[str, ...]
    knobs: tuple[Knob, ...]
    facts: Mapping[str, Any]
    doc: str = ""
    paper: str = ""
    digest: str = ""

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return self.doc.strip().split("\n")[0].strip()

    @property
    def defaults(self) -> dict[str, Any]:
        """Default value of each knob, as in a config."""
        return {k.name: list(k.default) if isinstance(k.default, tuple) else k.default for k in self.knobs}

    def knob(self, name: str) -> Knob | None:
        """The knob of this name, if there is one."""
        return next((k for k in self.knobs if k.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the catalogue."""
        plain = {f: getattr(self, f) for f in ("kind", "name", "module", "qualname", "doc", "paper", "digest")}
        return plain | {
            "dist": self.distribution.name,
            "version": self.distribution.version,
            "wiring": list(self.wiring),
            "knobs": [k.to_json() for k in self.knobs],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PartSpec":
        """The part described by an entry of the catalogue."""
        plain = {f: data[f] for f in ("kind", "name", "module", "qualname", "doc", "paper", "digest", "facts")}
        return cls(
            distribution=Distribution(data["dist"], data["version"]),
            wiring=tuple(data["wiring"]),
            knobs=tuple(Knob.from_json(k) for k in data["knobs"]),
            **plain,
        )


def refuse_another_description(listed: PartSpec, found: PartSpec) -> None:
    """Raise EnvironmentFault if the catalogue, a file that others may write, describes a part unlike its source."""
    ours, theirs = found.to_json(), listed.to_json()
    for what in ("module", "qualname", "wiring", "knobs", "facts"):
        first, second = (json.dumps(part.get(what), sort_keys=True) for part in (theirs, ours))
        if first != second:
            folder = cache_root() / "catalogue"
            # The next command scans anew; what a file of others said of code is not used a second time.
            shutil.rmtree(folder, ignore_errors=True)
            raise EnvironmentFault(
                f"the catalogue of parts in {folder} does not describe {found.kind}={found.name} as its source does: "
                f"{what} {first[:200]}, and not {second[:200]}.  The catalogue was removed\n    try: the same command"
            )
