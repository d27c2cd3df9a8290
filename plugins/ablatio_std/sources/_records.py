"""Shared by sources of records: find their files, read the column of text, report rows that cannot be used."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from ablatio.data.data_files import Place, files_digest, find_files, invalid_data, shown
from ablatio.data.records import (
    ENDINGS,
    BadRows,
    Expected,
    Record,
    Report,
    UnusedFields,
    checked_text,
    kind_of,
    records,
    refuse,
)
from ablatio.data.types import Conversation, Document, Feedback
from ablatio.errors import UserError

PATH = "a file, a folder or a glob, or several separated by `:`; .gz, .xz and .zst are decompressed"
COLUMN = "column (field) that holds the text"
ON_ERROR = "rows that cannot be used: fail at the first, or skip them, counted and logged"
OnError = Literal["fail", "skip"]
_SKIP = "source.on_error=skip, which leaves out rows that cannot be used"


def as_documents(items: Iterable[Conversation | Feedback]) -> Iterator[Document]:
    """Conversations or feedback as documents, whose texts train a tokenizer and are counted."""
    for item in items:
        yield Document(item.text, item.id, item.split)


class ColumnOfText:
    """Documents from the texts in one column of the records of files, read as a stream.

    `name` is the option, `endings` are groups of file endings (see `find_files`), `example` is the name of a file.
    With `project`, a table's other columns are not read; otherwise they are counted in `unused_fields`.
    `skipped_rows` counts the rows that the last pass left out.
    """

    name: str
    endings: Sequence[Sequence[str]]
    example: str
    project = True
    names_splits = False

    def __init__(self, path: str, column: str, on_error: OnError) -> None:
        self.path, self.column, self.on_error = path, column, on_error
        self.unused_fields: dict[str, int] = {}
        self.skipped_rows = 0

    def files(self) -> list[Path]:
        """The files of `path`, in order."""
        return files_of(self.path, self.name, self.endings, self.example)

    def documents(self) -> Iterator[Document]:
        bad, unused, used = BadRows(self.on_error == "skip"), UnusedFields(), 0
        for file in self.files():
            for record in text_records(file, self.column, None if self.project else unused, bad=bad, name=self.name):
                used += 1
                yield Document(record.fields[self.column], record.id)
        self.skipped_rows = bad.close(self.name, used)
        self.unused_fields = unused.close(self.name)

    def fingerprint(self) -> str:
        # The default adds nothing, so that fingerprints from before this knob stay valid.
        skip = [self.on_error] if self.on_error != "fail" else []
        return files_digest(self.files(), f"{self.name}-1", self.column, *skip)


def files_of(path: str, name: str, endings: Sequence[Sequence[str]], example: str) -> list[Path]:
    """The files of a path (see `find_files`). UserError for one whose ending is that of another format."""
    files = find_files(path, name, endings, example)
    own = [ending for group in endings for ending in group]
    for file in files:
        if (kind := kind_of(file)) not in own and any(kind in group for group in ENDINGS):
            raise invalid_data(
                Place(file), f"a {kind} file", f"{' or '.join(own)} for source={name}",
                f"ablatio train source=jsonl source.path={shlex.quote(path)}, which reads every format",
            )  # fmt: skip
    return files


def text_records(
    file: Path, field: str, unused: UnusedFields | None = None, *, bad: Report = refuse, name: str = "jsonl"
) -> Iterator[Record]:
    """Yield the records of a file, each with text in `field`.

    unused  counts the other fields; None: a table's other columns are not even read
    bad     called with the error of each row that cannot be used
    name    option whose command an error proposes
    """
    plain = "ablatio train source=text source.path=FILE, if it is plain text"
    skip = "" if bad is refuse else _SKIP  # sources without the knob refuse
    expected = Expected(f'{{{json.dumps(field)}: "..."}}', plain, skip)
    for record in records(file, expected, columns=[field] if unused is None else (), bad=bad):
        if unused is not None:
            unused.add(record.fields, {field})
        try:
            if not isinstance(record.fields.get(field), str):
                raise _no_text(record, field, name, skip if record.number > 1 else "")
            checked_text(record.fields[field], f"the field {field!r}", record.place)
        except UserError as error:
            bad(error)
        else:
            yield record


def _no_text(record: Record, field: str, name: str, fix: str) -> UserError:
    """The error for a record without text; `fix` is proposed if the field is there, or no other can be meant."""
    held = record.fields
    came = (
        f"the field {field!r} holds {type(held[field]).__name__}" if field in held else f"there is no field {field!r}"
    )
    # Only fields that hold text can be meant.
    texts = [other for other, value in held.items() if isinstance(value, str) and other.isidentifier()]
    close = get_close_matches(field, texts, n=1, cutoff=0.5) or texts[:1]
    names = ", ".join(shown(other) for other in list(held)[:20]) or "none"
    # The rows before this one had text in the field: another field is no remedy.
    if close and not (fix and field in held):
        fix = f"ablatio train source={name} source.path=FILE source.column={close[0]}"
    return invalid_data(record.place, came, f"text. Its fields: {names}", fix)
