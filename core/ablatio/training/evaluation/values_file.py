"""evaluations.json: values of evaluations that were made after a run had ended, beside the summary that it wrote.

The summary of a run is what its ledger recorded, and stays; the report reads both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio.storage.atomic_write import write_json
from ablatio.storage.json_files import NUMBER, Types, check_types, read_object

VALUES = "evaluations.json"
_ENTRY: dict[str, Types] = {
    "value": NUMBER,
    "error": (*NUMBER, type(None)),
    "items": int,
    "better": str,
    "step": int,
    "mark": str,
}


def read_values(folder: Path) -> dict[str, dict[str, Any]]:
    """Read {column: {value, error, items, better, step, mark}}; empty without the file.

    step  of the checkpoint that was measured; mark: digest of what was asked of it

    Raises DamagedFile for content that cannot be used.
    """
    found: dict[str, dict[str, Any]] = _read(folder).get("values", {})
    return found


def kept_values(folder: Path, mark: str) -> dict[str, dict[str, Any]] | None:
    """The values that were measured under this mark; None unless all of them are there."""
    found = _read(folder)
    columns, values = found.get("marks", {}).get(mark), found.get("values", {})
    if not columns or any(values.get(str(column), {}).get("mark") != mark for column in columns):
        return None
    return {column: values[column] for column in columns}


def write_values(folder: Path, values: Mapping[str, Mapping[str, Any]], step: int, mark: str) -> None:
    """Add values to the file of a run; those of the same columns are replaced."""
    found = _read(folder)
    new = {column: {**one, "step": step, "mark": mark} for column, one in values.items()}
    known = found.get("values", {}) | new
    current = {one["mark"] for one in known.values()}
    marks = {key: columns for key, columns in found.get("marks", {}).items() if key in current} | {mark: [*new]}
    write_json(folder / VALUES, {"values": known, "marks": marks})


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_object(folder / VALUES)
    except FileNotFoundError:
        return {}
    where = str(folder / VALUES)
    check_types(dict.fromkeys(("values", "marks")) | found, {"values": dict, "marks": dict}, where)
    check_types(found["values"], dict.fromkeys(found["values"], dict), where)
    check_types(found["marks"], dict.fromkeys(found["marks"], list), where)
    for column, one in found["values"].items():
        check_types(dict.fromkeys(_ENTRY) | one, _ENTRY, f"{column} in {where}")
    return found
