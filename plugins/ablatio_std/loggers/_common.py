"""What loggers share: a library that may be missing, its noise, its settings, and rows written in one go."""

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
SECONDS = 5.0  # between two writes of a database; a resumed run takes from metrics.csv what was not written yet


def needs(module: str, extra: str) -> None:
    """UserError with the command where a library is missing; it is not imported yet."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"logger={extra} needs the package {module}\n    try: pip install 'ablatio[{extra}]'")


@contextmanager
def quiet(library: str, **environment: str) -> Iterator[None]:
    """The library without its warnings and advice, and with these variables, which are gone afterwards."""
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
def alone(path: Path) -> Iterator[None]:
    """The only process that is in here for this file: runs of a sweep share a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """model: {d_model: 64} as model.d_model: 64."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


class Collected:
    """Rows that are written together, every few seconds and at the end: many take a database as long as one."""

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
        raise NotImplementedError

    def insert(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def close(self, status: str) -> None:
        """After the last row."""
