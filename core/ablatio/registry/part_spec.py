"""What is known of a part without importing it, and the distribution that it comes from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ablatio.registry.knobs import Knob


class ContractError(TypeError):
    """A part does not keep the contract of its kind, or takes a name that is taken."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution that a part comes from."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


SESSION = Distribution("this session", "")
_distribution: ContextVar[Distribution] = ContextVar("distribution", default=SESSION)


@contextmanager
def provided_by(distribution: Distribution) -> Iterator[None]:
    """Everything registered inside belongs to `distribution`."""
    token = _distribution.set(distribution)
    try:
        yield
    finally:
        _distribution.reset(token)


def current_distribution() -> Distribution:
    return _distribution.get()


@dataclass(frozen=True, slots=True)
class PartSpec:
    """All that is known of a part without importing it."""

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
        return self.doc.strip().split("\n")[0].strip()

    @property
    def defaults(self) -> dict[str, Any]:
        return {k.name: list(k.default) if isinstance(k.default, tuple) else k.default for k in self.knobs}

    def knob(self, name: str) -> Knob | None:
        return next((k for k in self.knobs if k.name == name), None)

    def to_json(self) -> dict[str, Any]:
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
        plain = {f: data[f] for f in ("kind", "name", "module", "qualname", "doc", "paper", "digest", "facts")}
        return cls(
            distribution=Distribution(data["dist"], data["version"]),
            wiring=tuple(data["wiring"]),
            knobs=tuple(Knob.from_json(k) for k in data["knobs"]),
            **plain,
        )
