"""metrics.csv: one row per log, columns known from the start, cut back to the checkpoint when a run is resumed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatio.storage.atomic_write import explained, write_text

COLUMNS = (
    "step", "tokens", "train/loss", "train/lr", "val/loss", "val/bpb", "val/accuracy", "tokens_per_second", "seconds",
)  # fmt: skip


class MetricsFile:
    """Rows of numbers; what a row lacks stays empty."""

    def __init__(self, path: Path, extra: Sequence[str] = ()) -> None:
        self.path = path
        self.columns = list(dict.fromkeys([*COLUMNS, *extra]))  # a task and its method may both name one

    def start(self, after_step: int | None = None) -> None:
        """A new file, or the old one without the rows later than `after_step`."""
        rows = self.read() if after_step is not None and self.path.exists() else []
        kept = [r for r in rows if r["step"] and int(r["step"]) <= (after_step or 0)]
        write_text(self.path, self._lines([self.columns, *([r.get(c, "") for c in self.columns] for r in kept)]))

    def write(self, row: Mapping[str, float]) -> dict[str, float]:
        """Append one row and give its numbers as they are written; it is on its way to the disk when this returns."""
        texts = {c: _text(row.get(c)) for c in self.columns}
        with explained("write", self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._lines([[*texts.values()]]))
        return numbers(texts)

    def read(self) -> list[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @staticmethod
    def _lines(rows: Sequence[Sequence[str]]) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue()


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a row of the file; what it lacks is left out."""
    return {c: int(text) if text.lstrip("-").isdigit() else float(text) for c, text in row.items() if text}


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
