"""Provenance of a run: versions of libraries, hashes of code, parts, plugins and data."""

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
from ablatio.registry.parts_file import record_for
from ablatio.registry.registry import PartSpec
from ablatio.registry.session_parts import is_of_session, source_of
from ablatio.storage.paths import HERE

LIBRARIES = ("ablatio", "torch", "lightning", "hydra-core", "numpy", "tokenizers", "safetensors")


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, the system and the libraries that affect the numbers."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def parts(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return {kind/name: distribution and source hash} for each part that the config chooses."""
    return {f"{entry.kind}/{entry.name}": _part(entry) for entry, _ in chosen(config)}


def parts_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """Record of the file of parts that the user named, if the config chooses one of its parts; else empty."""
    return record_for(entry for entry, _ in chosen(config))


def _part(entry: PartSpec) -> dict[str, str | None]:
    """Record of one part; for a part defined in a session also its source code, which no distribution keeps.

    `source` is None if the code cannot be retrieved.
    """
    record: dict[str, str | None] = {"distribution": str(entry.distribution), "sha256": entry.digest}
    return record | {"source": source_of(entry)} if is_of_session(entry) else record


def code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of the core, of every plugin and of the chosen parts.

    Core and plugins are hashed once per process, when first asked for, so the hashes are those of the imported code
    even if files change later.
    """
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
