"""Shared code of the loggers: optional libraries and their output, locks, flat configs, and batched rows."""

import fcntl
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablatio.errors import UserError

Row = Mapping[str, float]
SECONDS = 5.0  # between writes to a database; a resumed run takes unwritten rows from metrics.csv


def needs(module: str, extra: str) -> None:
    """Raise UserError, with the command to install it, if a module is missing; the module is not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"logger={extra} needs the package {module}\n    try: pip install 'ablatio[{extra}]'")


@contextmanager
def quiet(library: str, **environment: str) -> Iterator[None]:
    """Silence a library's warnings and log messages, and set environment variables until exit."""
    before, logger = dict(os.environ), logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ |= environment
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= {k: v for k, v in before.items() if os.environ.get(k) != v}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for the file `path`: the runs of a sweep share a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys: {"model": {"d_model": 64}} becomes {"model.d_model": 64}."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return result


class BatchedRows:
    """Base of loggers that write rows in batches: a database needs as much time for many rows as for one.

    Rows are written every SECONDS and at the end.
    """

    def __init__(self) -> None:
        self.waiting: list[Row] = []
        self.written = 0.0

    def start(self, rows: Sequence[Row]) -> None:
        self.waiting = list(rows)
        self.open()
        self._write()

    def log(self, row: Row) -> None:
        self.waiting.append(row)
        if time.monotonic() - self.written >= SECONDS:
            self._write()

    def finish(self, status: str) -> None:
        self._write()
        self.close(status)

    def _write(self) -> None:
        if self.waiting:
            self.insert(self.waiting)
        self.waiting, self.written = [], time.monotonic()

    def open(self) -> None:
        """Open the database and delete earlier rows of this run."""
        raise NotImplementedError

    def insert(self, rows: Sequence[Row]) -> None:
        """Write rows; each has the key "step"."""
        raise NotImplementedError

    def close(self, status: str) -> None:
        """Close the run in the database, after the last row; by default nothing."""
