"""What a run was made of: versions and hashes of code, parts, plugins and data."""

import functools
import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablatio.config.schema import chosen
from ablatio.registry import discovery
from ablatio.registry.catalogue import PluginSource
from ablatio.registry.registry import PartSpec
from ablatio.registry.session_parts import is_of_session, source_of
from ablatio.storage.paths import HERE

LIBRARIES = ("ablatio", "torch", "lightning", "hydra-core", "numpy", "tokenizers", "safetensors")


def hash_of(files: Iterable[Path]) -> str:
    """sha256 over names and contents, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, the system and the libraries that the numbers depend on."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def parts(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """The chosen options: who provides them, and the hash of their source."""
    return {f"{entry.kind}/{entry.name}": _part(entry) for entry, _ in chosen(config)}


def _part(entry: PartSpec) -> dict[str, str | None]:
    """`source`: the text of a part that no distribution keeps; None where it is gone."""
    told: dict[str, str | None] = {"distribution": str(entry.distribution), "sha256": entry.digest}
    return told | {"source": source_of(entry)} if is_of_session(entry) else told


def code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of the core and of every plugin, as they were when this process first asked: what it has imported."""
    return {
        "core": _core(),
        "plugins": {f"{s.name} ({s.distribution})": _hash_once(s) for s in discovery.sources()},
        "parts": parts(config),
    }


@functools.cache
def _core() -> str:
    return hash_of(HERE.rglob("*.py"))


@functools.cache
def _hash_once(source: PluginSource) -> str:
    return hash_of(source.files)
