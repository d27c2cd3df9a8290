"""What a kind says of its parts and which it holds: the data of a Registry, for the modules that it is made from."""

from collections.abc import Callable, Mapping
from typing import Any

from ablatio.registry.part_spec import PartSpec


class KindContract:
    """Attributes of a Registry, whose docstring says what they mean."""

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
