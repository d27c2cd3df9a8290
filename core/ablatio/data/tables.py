"""Tables of Arrow's formats (Parquet, Arrow files and streams), read batch by batch with bounded memory."""

import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablatio.data.data_files import COMPRESSIONS, Place, invalid_data, read_bytes
from ablatio.errors import UserError

PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
_ROWS = 256  # rows of a table that are held in memory as Python objects


def is_parquet(head: bytes, kind: str) -> bool:
    """True if a file with this beginning and ending is Parquet."""
    return head.startswith(PARQUET) or kind == ".parquet"


def is_arrow(head: bytes, kind: str) -> bool:
    """True if a file with this beginning and ending is an Arrow file or stream."""
    return head.startswith((ARROW_FILE, ARROW_STREAM)) or kind == ".arrow"


def table_rows(file: Path, head: bytes, kind: str, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table without their empty cells, which stand for missing fields.

    head, kind  first bytes and ending of the file, which tell its format
    columns     the columns that are read; by default all.  One that the table lacks is a UserError that lists them
    """
    batches = _parquet(file, columns) if is_parquet(head, kind) else _arrow(file, head, columns)
    while True:
        with _valid_table(file):
            batch = next(batches, None)
            if batch is None:
                return
            rows = batch.to_pylist()
        # Outside the guard: an error of whoever consumes the rows is not one of the table.
        for row in rows:
            yield {name: value for name, value in row.items() if value is not None}


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(_seekable(file)) as table:
        read = _known(file, columns, table.schema_arrow.names)
        yield from table.iter_batches(batch_size=_ROWS, columns=read or None, use_threads=False)


def _arrow(file: Path, head: bytes, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow.ipc

    content, random_access = _seekable(file), head.startswith(ARROW_FILE)
    with pyarrow.ipc.open_file(content) if random_access else pyarrow.ipc.open_stream(content) as table:
        read = _known(file, columns, table.schema.names)
        batches = (table.get_batch(i) for i in range(table.num_record_batches)) if random_access else table
        for batch in batches:
            part = batch.select(read) if read else batch
            # A file may be one batch of a million rows, and `to_pylist` makes a Python object of every cell.
            yield from (part.slice(start, _ROWS) for start in range(0, part.num_rows, _ROWS))


def _known(file: Path, columns: Sequence[str], names: Sequence[str]) -> list[str]:
    if missing := [c for c in columns if c not in names]:
        raise no_column(Place(file), missing[0], names)
    return list(columns)


def no_column(place: Place, column: str, names: Sequence[str]) -> UserError:
    """Return the error for a column that a table lacks; it lists those that there are."""
    listed = ", ".join(names[:40]) or "none"
    meant = next(iter([*difflib.get_close_matches(column, names, 1, 0.55), *names]), "")
    return invalid_data(
        place, f"there is no column {column!r}", f"one of its columns: {listed}",
        f"source.column={meant}" if meant else "",
    )  # fmt: skip


def _seekable(file: Path) -> Any:
    """The file for a reader that needs random access: an archive is decompressed in memory."""
    return io.BytesIO(read_bytes(file)) if file.suffix in COMPRESSIONS else str(file)


@contextmanager
def _valid_table(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except MemoryError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
        # pyarrow raises OSError without a number for content; one with a number comes from the system.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise invalid_data(Place(file), f"not a valid table ({str(error)[:200]})", "Parquet or Arrow") from None
