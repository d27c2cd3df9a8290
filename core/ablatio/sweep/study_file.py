"""The `sweep:` section of a study's file, checked before it is used."""

from collections.abc import Mapping
from typing import Any

from ablatio.config.yaml_files import SWEEP, File
from ablatio.errors import UserError

EXAMPLE = "sweep: {axes: {norm: [rmsnorm, layernorm]}}"


def study_section(file: File) -> Mapping[str, Any]:
    """Return the section, {} without one.  Raises UserError, with the key, for a value of another shape."""
    section = file.read().get(SWEEP) or {}
    _expect(isinstance(section, Mapping) and all(isinstance(k, str) for k in section), file, SWEEP, section, "settings")
    axes, overrides, recipe = section.get("axes") or {}, section.get("overrides") or [], section.get("recipe", "")
    _expect(isinstance(axes, Mapping), file, "axes", axes, "settings with their values")
    for key, values in axes.items():
        _expect(isinstance(values, list) and bool(values), file, f"axes.{key}", values, "a list of values")
    is_list = isinstance(overrides, list) and all(isinstance(text, str) and "=" in text for text in overrides)
    _expect(is_list, file, "overrides", overrides, "a list of settings, key=value")
    _expect(isinstance(recipe, str), file, "recipe", recipe, "the name of a recipe")
    found: Mapping[str, Any] = section
    return found


def _expect(right: bool, file: File, key: str, value: Any, expected: str) -> None:
    if not right:
        raise UserError(
            f"{file.path}: `{key}` is {value!r:.60}; expected {expected}\n    try: in this file, {EXAMPLE}; "
            f"`ablatio list {SWEEP}` shows others"
        )
