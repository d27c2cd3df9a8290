"""samples.jsonl: what a model says during training, for people to read; cut back like the metrics on resume."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatio.writer import explained, write_text


class SamplesFile:
    """One JSON object a line: the step, and what a task shows of it.  There is no file as long as nothing is shown."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, after_step: int | None = None) -> None:
        """Forget rows later than `after_step`, or all."""
        if self.path.exists():
            with explained("read", self.path):
                lines = self.path.read_text(encoding="utf-8").splitlines()
            last = -1 if after_step is None else after_step
            write_text(self.path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= last))

    def write(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            text = "".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
            with explained("write", self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(text)
