"""Attributes of a Registry, in a module of their own for the modules that Registry itself imports."""

from collections.abc import Callable, Mapping
from typing import Any

from ablatio.registry.part_spec import PartSpec


class KindContract:
    """Base class of Registry, with the types of its attributes; the docstring of Registry has their meaning."""

    kind: str
    base: str
    attaches: str
    wiring: tuple[str, ...]
    calls: dict[tuple[str, ...], Mapping[str, Any]]
    methods: tuple[str, ...]
    any_of: tuple[str, ...]
    facts: dict[str, Any]
    asks: dict[str, tuple[str, ...]]
    contract: tuple[type, ...]
    from_catalogue: bool = False
    entries: dict[str, PartSpec]
    _targets: dict[str, Callable[..., Any]]  # imported parts: classes and functions by name
