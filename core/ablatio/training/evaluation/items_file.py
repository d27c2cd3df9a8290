"""items.jsonl: one line for each item of an evaluation, with the values of the metrics, for comparisons by item."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.storage.atomic_write import write_text
from ablatio.storage.json_files import check_types, parse_object, read_text

ITEMS = "items.jsonl"
TYPES = {"step": int, "eval": str, "id": str, "item": str, "cluster": str, "values": dict}


def read_items(folder: Path) -> list[dict[str, Any]]:
    """Read the items of a run folder; empty if it has none.  Raises DamagedFile for content that cannot be used."""
    path = folder / ITEMS
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        where = f"line {number} of {path}"
        row = parse_object(line, where)
        check_types(dict.fromkeys(TYPES) | row, TYPES, where)
        check_types(row["values"], dict.fromkeys(row["values"], (int, float)), where)
        rows.append(row)
    return rows


def write_items(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the items of an evaluation; those of other evaluations are kept, those of the same ones replaced."""
    names = {row["eval"] for row in rows}
    kept = [row for row in read_items(folder) if row["eval"] not in names]
    write_text(folder / ITEMS, "".join(_lines([*kept, *rows])))


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
