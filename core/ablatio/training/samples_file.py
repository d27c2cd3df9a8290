"""samples.jsonl: answers of the model during training; truncated to the checkpoint when a run is resumed.

The same held-out prompts are answered at each validation, so the summary can show the first and the last answer to each
side by side.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.storage.atomic_write import explained, write_text
from ablatio.storage.json_files import check_types, parse_object, read_text


class SamplesFile:
    """JSON lines with the step and a sample of the task; the file exists only if the task has samples."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, after_step: int | None = None) -> None:
        """Drop rows later than `after_step`; None: all."""
        if self.path.exists():
            last = -1 if after_step is None else after_step
            kept = [json.dumps(row, ensure_ascii=False) for row in self.read() if row["step"] <= last]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        """Read all complete rows; empty if there is no file."""
        if not self.path.exists():
            return []
        # Not splitlines: it also splits at other characters, which answers may contain.
        lines = read_text(self.path).split("\n")[:-1]
        rows = [parse_object(line, f"line {number} of {self.path}") for number, line in enumerate(lines, 1)]
        for number, row in enumerate(rows, 1):
            check_types({"step": None} | row, {"step": int}, f"line {number} of {self.path}")
        return rows

    def write(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Append samples of a step; nothing if there are none."""
        if rows:
            text = "".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
            with explained("write", self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(text)

    def compared(self) -> list[dict[str, str]]:
        """Compare the first and last answers: for each prompt {prompt, expected, before, after}.

        Other values that changed, such as a reward, are written as `0.1 -> 0.4`.  Empty if all answers are of one step.
        """
        rows = self.read()
        steps = [row["step"] for row in rows]
        first, last = ([r for r in rows if r["step"] == end(steps, default=0)] for end in (min, max))
        return [_side_by_side(*pair) for pair in zip(first, last, strict=False)] if first != last else []


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Merge two rows of one prompt: answers as before and after, changed values as `old -> new`."""
    rest = [key for key in before if key not in ("step", "answer")]
    kept = {key: str(after.get(key, "")) for key in rest}
    moved = {key: f"{before[key]} -> {kept[key]}" for key in rest if str(before[key]) != kept[key]}
    return kept | moved | {"before": str(before.get("answer", "")), "after": str(after.get("answer", ""))}
