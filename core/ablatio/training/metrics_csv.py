"""metrics.csv: one row per log entry, with fixed columns; truncated to the checkpoint when a run is resumed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatio.storage.atomic_write import explained, write_text
from ablatio.storage.json_files import damaged, read_text

COLUMNS = (
    "step", "tokens", "train/loss", "train/lr", "val/loss", "val/bpb", "val/accuracy", "tokens_per_second", "seconds",
)  # fmt: skip


class MetricsFile:
    """Writer and reader of metrics.csv; a number that a row does not have stays empty.

    extra  columns beyond COLUMNS, for the metrics of task and parts
    """

    def __init__(self, path: Path, extra: Sequence[str] = ()) -> None:
        self.path = path
        self.columns = list(dict.fromkeys([*COLUMNS, *extra]))  # task and parts may declare the same name

    def start(self, after_step: int | None = None) -> None:
        """Begin a new file, or keep the old one without the rows later than `after_step`."""
        rows = self.read() if after_step is not None and self.path.exists() else []
        steps = ((r, r.get("step") or "") for r in rows)
        earlier = [r for r, step in steps if step.isascii() and step.isdecimal() and int(step) <= (after_step or 0)]
        write_text(self.path, self._lines([self.columns, *([r.get(c, "") for c in self.columns] for r in earlier)]))

    def write(self, row: Mapping[str, float]) -> dict[str, float]:
        """Append one row and return its numbers as written, rounded to nine digits.

        The row has been passed to the operating system when this returns.
        """
        texts = {c: _text(row.get(c)) for c in self.columns}
        with explained("write", self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._lines([[*texts.values()]]))
        return numbers(texts)

    def read(self) -> list[dict[str, str]]:
        """Read all rows as text, {column: text}; raises FileNotFoundError, DamagedFile or EnvironmentFault."""
        with damaged(str(self.path), "rows of numbers"):
            try:
                return list(csv.DictReader(io.StringIO(read_text(self.path).replace("\0", ""), newline="")))
            except csv.Error as error:
                raise ValueError(str(error)) from None

    @staticmethod
    def _lines(rows: Sequence[Sequence[str]]) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue()


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Parse a row of the file into {column: number}, without its empty cells."""
    return {c: int(text) if text.lstrip("-").isdigit() else float(text) for c, text in row.items() if text}


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
