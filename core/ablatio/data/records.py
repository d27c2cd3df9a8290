"""Records of data files: JSON Lines, a JSON list, CSV, Parquet, Arrow and tar shards, each plain, .gz, .xz or .zst.

`python -m ablatio.data.records FILE NUMBER` prints one record.
"""

import csv
import itertools
import json
import shlex
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ablatio.data.data_files import (
    COMPRESSIONS,
    LINE_LIMIT,
    Place,
    invalid_data,
    log_once,
    opened,
    read_lines,
    readable,
    shown,
    utf8,
)
from ablatio.data.tables import is_arrow, is_parquet, no_column, table_rows
from ablatio.errors import AblatioError, UserError

# Groups of endings in the order in which they are preferred in a folder.
ENDINGS = ((".jsonl", ".ndjson"), (".parquet",), (".arrow",), (".json",), (".csv", ".tsv"), (".tar",))
TABLES = (".parquet", ".arrow")
_NAMES = 50  # different names of unused fields that are counted; a file could have a new one in each record


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file: `fields` by name, `place` for messages, `number` from 1 for its id."""

    fields: dict[str, Any]
    place: Place
    number: int

    @property
    def id(self) -> str:
        """File name and number, as an id of what is read from the record."""
        return f"{self.place.file.name}:{self.number}"


def kind_of(file: Path) -> str:
    """Return the ending of a file that tells its format, without the ending of its compression."""
    return (Path(file.stem) if file.suffix in COMPRESSIONS else file).suffix.lower()


@dataclass(frozen=True, slots=True)
class Expected:
    """Texts for a reader's errors: an example of a valid JSON object, and what to try.

    fix    for files of another kind
    later  for a row that cannot be used after others; by default `fix`
    """

    example: str = ""
    fix: str = ""
    later: str = ""

    def invalid(self, place: Place, came: str) -> UserError:
        """The error for JSON that holds no objects."""
        example = f", as {self.example}" if self.example else ""
        # A file whose first row is not JSON is one of another kind; after good rows, this row is a bad one.
        fix = self.later if self.later and place.number > 1 else self.fix
        return invalid_data(place, came, f"one JSON object per line{example}, or one list of them", fix)


Report = Callable[[UserError], None]  # called with the error of a row that cannot be used: raises it or counts it


def refuse(error: UserError) -> None:
    """Raise the error of a row: the first one ends the reading."""
    raise error


def records(
    file: Path, expected: Expected = Expected(), *, columns: Sequence[str] = (), bad: Report = refuse
) -> Iterator[Record]:
    """Yield the records of a file.

    The format is that of the ending (.csv, .tsv, .tar) or of the first bytes (Parquet, Arrow); otherwise it is JSON,
    one object per line or one list of objects.

    columns  of a table (Parquet, Arrow, CSV) those that are needed: others are not read from Parquet and Arrow, and
             one that is missing is a UserError that lists the columns
    bad      called with the UserError of a row that cannot be read; by default it raises it.  A file that is damaged
             as a whole is always an error
    """
    kind = kind_of(file)
    with readable(file), opened(file) as stream:
        # Files that are not compressed are buffered readers, too.
        head: bytes = stream.peek(8)[:8]  # type: ignore[attr-defined]
        if is_parquet(head, kind) or is_arrow(head, kind):
            for number, row in enumerate(table_rows(file, head, kind, columns), 1):
                yield Record(row, Place(file, "row", number), number)
        elif kind in (".csv", ".tsv"):
            yield from _csv(file, stream, "\t" if kind == ".tsv" else ",", columns, bad)
        elif kind == ".tar":
            yield from _tar(file, stream, columns, bad)
        else:
            yield from _json(file, stream, expected, bad)


def _json(file: Path, stream: IO[bytes], expected: Expected, bad: Report) -> Iterator[Record]:
    """JSON Lines, unless the first character is that of a list, or the whole file is one object."""
    every = read_lines(file, stream)
    lines = ((number, text) for number, text in every if text.strip())
    number, text = next(lines, (0, ""))
    if text.lstrip().startswith("["):
        yield from _json_list(file, text + "".join(line for _, line in every), number, expected, bad)
        return
    # One object over several lines; of other files the first line decides, so that a broken line is named as one.
    if text.strip() == "{" or (text and kind_of(file) == ".json" and not _is_json(text)):
        text += "".join(line for _, line in every)
    while text:
        place = Place(file, "line", number)
        try:
            record = _record(_loaded(text, place, expected), place, number, expected)
        except UserError as error:
            bad(error)
        else:
            yield record
        number, text = next(lines, (0, ""))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _loaded(text: str, place: Place, expected: Expected) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise expected.invalid(place, f"not valid JSON ({error})") from None


def _record(value: Any, place: Place, number: int, expected: Expected) -> Record:
    if not isinstance(value, dict):
        raise expected.invalid(place, f"found a {type(value).__name__}")
    return Record(value, place, number)


def _json_list(file: Path, text: str, line: int, expected: Expected, bad: Report) -> Iterator[Record]:
    """The records of one JSON list, decoded one by one; `line` is the number of the first line of `text`."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1

    def skip(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def broken(at: int, came: str) -> UserError:
        return expected.invalid(Place(file, "line", line + text.count("\n", 0, at)), came)

    at = skip(at)
    if text[at : at + 1] == "]":
        return
    for number in itertools.count(1):
        try:
            # One by one and not `json.loads`, which would hold all records as objects at once.
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise broken(at, f"not valid JSON in record {number} ({error})") from None
        try:
            record = _record(value, Place(file, "record", number), number, expected)
        except UserError as error:
            bad(error)
        else:
            yield record
        at = skip(end)
        if text[at : at + 1] == "]":
            if rest := text[skip(at + 1) :]:
                raise broken(at, f"text after the end of the list: {shown(rest)}")
            return
        if text[at : at + 1] != ",":
            raise broken(at, f"no comma after record {number}, but {shown(text[at : at + 20])}")
        at = skip(at + 1)


def _csv(file: Path, stream: IO[bytes], delimiter: str, columns: Sequence[str], bad: Report) -> Iterator[Record]:
    """Rows of a table in text; the first one names the columns."""
    csv.field_size_limit(LINE_LIMIT)  # its own limit of 128 KiB is less than a document
    # strict: without it the reader guesses what a stray quote means, and rows run into one another.
    rows = csv.reader((text for _, text in read_lines(file, stream)), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    for number in itertools.count(0):
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise invalid_data(Place(file, "line", line), f"not valid CSV ({error})", "a row of cells") from None
        if row is None:
            return
        # A cell may hold line ends: a row's number is not that of its line.
        place, line = Place(file, "line", line), rows.line_num + 1
        if not names:
            names = row
            if len(set(names)) < len(names) or "" in names:
                raise invalid_data(place, f"the columns {shown(names, 80)}", "a name for each column, each once")
            if missing := [column for column in columns if column not in names]:
                raise no_column(place, missing[0], names)
        elif row and len(row) != len(names):
            bad(invalid_data(place, f"{len(row)} cells", f"{len(names)}, as the first line has"))
        elif row:
            yield Record(dict(zip(names, row, strict=True)), place, number)


def _tar(file: Path, stream: IO[bytes], columns: Sequence[str], bad: Report) -> Iterator[Record]:
    """The samples of a shard: consecutive files with the same name up to the first dot; the fields are their endings.

    A field `json` is parsed, other fields are text; with `columns` only these are read.
    """
    number = 0
    try:
        # As a stream: a decompressed archive cannot go back, and each member is read before the next is looked for.
        with tarfile.open(fileobj=stream, mode="r|") as shard:
            files = (member for member in shard if member.isfile())
            # Consecutive members only, as in WebDataset: no index of the whole archive is needed.
            for _, members in itertools.groupby(files, lambda member: _sample(member.name)[0]):
                number += 1
                place, fields, endings = Place(file, "record", number), dict[str, Any](), list[str]()
                for member in members:
                    endings.append(ending := _sample(member.name)[1])
                    if not columns or ending in columns:
                        content = shard.extractfile(member)
                        text = utf8(b"" if content is None else content.read(), Path(f"{file}:{member.name}"), 0)
                        fields[ending] = _loaded(text, place, Expected()) if ending == "json" else text
                if missing := [column for column in columns if column not in endings]:
                    bad(no_column(place, missing[0], endings))
                else:
                    yield Record(fields, place, number)
    except tarfile.TarError as error:
        show = f"tar -tf {shlex.quote(str(file))}"
        raise invalid_data(Place(file), f"a damaged tar archive ({error})", fix=show) from None


def _sample(path: str) -> tuple[str, str]:
    """(name of the sample, ending) of a file in a shard: its name is cut at the first dot."""
    folder, slash, name = path.rpartition("/")
    base, _, ending = name.partition(".")
    return f"{folder}{slash}{base}", ending


def checked_text(value: str, name: str, place: Place) -> str:
    """Return `value`; UserError if it holds half of a surrogate pair, which is no text and cannot be encoded."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid_data(
            place, f"character {error.start} of {name} is half of a surrogate pair (U+{ord(value[error.start]):04X})",
            "valid Unicode text",
        ) from None  # fmt: skip
    return value


class UnusedFields:
    """Counts of the fields that a reader does not use, over one pass of a source."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, record: Mapping[str, Any], known: set[str], prefix: str = "") -> None:
        """Count the fields of `record` that are not `known` and not null."""
        for name in record.keys() - known:
            # A null is what tables and exporters write for a missing field.
            if record[name] is not None:
                self.count(prefix + str(name).encode("utf-8", "backslashreplace").decode()[:80])

    def count(self, name: str) -> None:
        """Count one field by its name."""
        self._counts[name if name in self._counts or len(self._counts) < _NAMES else "further fields"] += 1

    def close(self, source: str) -> dict[str, int]:
        """Return the counts, sorted by name, and log them once."""
        found = dict(sorted(self._counts.items()))
        if found:
            named = ", ".join(f"{name} ({count})" for name, count in found.items())
            log_once(f"source={source} does not use these fields (number of times that they occur): {named}")
        return found


class BadRows:
    """Rows that cannot be used, over one pass of a source: the first is raised, or they are counted and left out.

    `BadRows(skip=...)` is called with the UserError of each.
    """

    def __init__(self, skip: bool) -> None:
        self.skip, self.count = skip, 0
        self.first: UserError | None = None

    def __call__(self, error: UserError) -> None:
        """Raise the error, or count its row."""
        if not self.skip:
            raise error
        self.first = self.first or error
        self.count += 1

    def close(self, source: str, used: int) -> int:
        """Return the count and log it once; UserError with the first row's error if no row could be used."""
        if self.first is not None and not used:
            raise UserError(f"none of the {self.count} row(s) can be used. {self.first}")
        if self.first is not None:
            came = str(self.first).partition("\n")[0]
            log_once(f"source={source} left out {self.count} row(s) that cannot be used; the first: {came}")
        return self.count


if __name__ == "__main__":
    chosen, wanted = Path(sys.argv[1]), int(sys.argv[2])
    try:
        print(next((r.fields for r in records(chosen) if r.number == wanted), f"{chosen} has no record {wanted}"))
    except AblatioError as error:
        sys.exit(str(error))
