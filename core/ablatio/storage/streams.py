"""Standard output and error that a run survives: closed, full, broken or ASCII streams never end it."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ablatio.storage.secrets import redact


class SafeStream:
    """A text stream whose writes never raise; hidden values are replaced by their expressions.

    error  of the first write that failed; None if all went well
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.error: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, text: str) -> int:
        """Write the text as far as the stream takes it; returns its length."""
        try:
            self.file.write(redact(text))
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._failed(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream; an error is kept, not raised."""
        try:
            self.file.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def _failed(self, error: OSError | ValueError) -> None:
        self.error = self.error or error

    @property
    def is_broken_pipe(self) -> bool:
        """True if the reader of this stream has gone, as in `ablatio list | head`."""
        return isinstance(self.error, BrokenPipeError)

    def why(self) -> str:
        """The error in words."""
        number = getattr(self.error, "errno", None)
        name = errno.errorcode.get(number or 0, type(self.error).__name__)
        return f"{os.strerror(number) if number else self.error} ({name})"


def lasting_stdout() -> Any:
    """Standard output as a stream whose writes never raise, for a run that a program starts."""
    return sys.stdout if isinstance(sys.stdout, SafeStream) else SafeStream(_usable(sys.stdout, 1))


@contextmanager
def safe_streams() -> Iterator[tuple[SafeStream, SafeStream]]:
    """Replace sys.stdout and sys.stderr while the context lasts; what they cannot take is dropped at its end."""
    _open_missing()
    old = sys.stdout, sys.stderr
    new = SafeStream(_usable(old[0], 1)), SafeStream(_usable(old[1], 2))
    sys.stdout, sys.stderr = new
    try:
        yield new
    finally:
        for stream in new:
            stream.flush()
            # Text that could not be written stays in the buffer, and Python would try again, and fail, when it ends.
            if stream.error:
                _discard(stream.file)
        sys.stdout, sys.stderr = old


def _open_missing() -> None:
    """Open the standard streams that the caller has closed: a file that is opened later must not get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _usable(file: TextIO | None, number: int) -> TextIO:
    """The stream, or one that drops everything if there is none; characters that it lacks are written as escapes."""
    if file is None:
        file = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    with suppress(AttributeError, OSError, ValueError):  # not every stream can be reconfigured
        # An ASCII terminal (locale C) would end a run at the first sign beyond ASCII.
        if file.errors == "strict":
            file.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return file


def _discard(file: TextIO) -> None:
    """Send what the stream still holds to nowhere, so that Python does not fail to flush it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, file.fileno())
        os.close(handle)
        file.flush()
