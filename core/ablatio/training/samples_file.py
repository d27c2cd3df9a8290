"""samples.jsonl: what a model says during training, for people to read; cut back like the metrics on resume.

The same few held-out prompts are answered each time the run is scored, so the first and the last answers to each are
its before and after: the summary has them side by side.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.storage.atomic_write import explained, write_text


class SamplesFile:
    """One JSON object a line: the step, and what a task shows of it.  There is no file as long as nothing is shown."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, after_step: int | None = None) -> None:
        """Forget rows later than `after_step`, or all."""
        if self.path.exists():
            last = -1 if after_step is None else after_step
            kept = [json.dumps(row, ensure_ascii=False) for row in self.read() if row["step"] <= last]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        """All rows that were written whole; none where nothing was shown."""
        if not self.path.exists():
            return []
        with explained("read", self.path):
            text = self.path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]  # a model may say what `splitlines` splits at

    def write(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            text = "".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
            with explained("write", self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(text)

    def compared(self) -> list[dict[str, str]]:
        """Of each prompt {prompt, expected, before, after}; what else changed, such as a reward, as `0.1 -> 0.4`."""
        rows = self.read()
        steps = [row["step"] for row in rows]
        first, last = ([r for r in rows if r["step"] == end(steps, default=0)] for end in (min, max))
        return [_side_by_side(*pair) for pair in zip(first, last, strict=False)] if first != last else []


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    rest = [key for key in before if key not in ("step", "answer")]
    kept = {key: str(after.get(key, "")) for key in rest}
    moved = {key: f"{before[key]} -> {kept[key]}" for key in rest if str(before[key]) != kept[key]}
    return kept | moved | {"before": str(before.get("answer", "")), "after": str(after.get("answer", ""))}
