"""Files of data: finding them, decompressing them with bounded memory, and one error for content that cannot be used.

Files may be plain, .gz, .xz or .zst.  Readers of files raise what `invalid_data` returns, so that every message about a
data file has the same form: file and line, what came, what was expected, and a command that shows the place.
"""

import functools
import glob
import gzip
import hashlib
import io
import json
import logging
import lzma
import shlex
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from ablatio.errors import AblatioError, EnvironmentFault, UserError
from ablatio.storage.atomic_write import make_folder, write_text
from ablatio.storage.paths import cache_root

LINE_LIMIT = 1 << 28  # bytes of one line: bounds the memory for a file without line ends
EXPANSION_LIMIT = 200  # bytes per compressed byte; text and JSON reach 3 to 50, an archive made to fill memory 1000
EXPANSION_FREE = 1 << 26  # bytes that any archive may expand to
REMEMBERED = 1 << 25  # bytes of a file from which on its digest is remembered
_SETTLED = 5  # seconds after a change within which another one may leave the times of a file as they are
COMPRESSIONS = {".gz": "zcat", ".xz": "xzcat", ".zst": "zstdcat"}
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0", ".zst": b"(\xb5/\xfd"}
_TESTS = {".gz": "gzip --test", ".xz": "xz --test", ".zst": "zstd --test"}

T = TypeVar("T")
log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a data file, for messages.

    unit    `line` (counted in the decompressed file), `record` (of a JSON list), `row` (of a table), or empty: the file
    number  counted from 1
    """

    file: Path
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}" if self.unit else str(self.file)

    @property
    def command(self) -> str:
        """A command that shows the place."""
        file = shlex.quote(str(self.file))
        if self.unit == "line":
            return f"{COMPRESSIONS.get(self.file.suffix, 'cat')} {file} | sed -n {self.number}p"
        return f"python -m ablatio.data.records {file} {self.number}" if self.unit else f"file {file}"


def invalid_data(place: Place, came: str, expected: str = "", fix: str = "") -> UserError:
    """Return the error for content of a data file that cannot be used.

    came      what stands at `place`
    expected  what was expected there
    fix       a command or change that helps; by default a command that shows the place
    """
    todo = fix or place.command + (", then correct or delete it" if place.unit else "")
    message = f"{place}: {came}{f'; expected {expected}' if expected else ''}\n    try: {todo}"
    return UserError(message.encode("utf-8", "backslashreplace").decode())  # names of fields may be no valid text


def shown(value: Any, limit: int = 40) -> str:
    """Return the beginning of a value's repr, for messages; only the type of a value that is nested too deeply."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: an integer with too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def find_files(path: str, source: str, endings: Sequence[Sequence[str]], example: str) -> list[Path]:
    """Return the files of a path, folder or glob, sorted by name; several paths are separated by `:`.

    endings  groups of file endings; of a folder the files of the first group that occurs are read, and a message names
             the data files of other groups that it holds
    example  name of a file, for the command of an error

    Raises UserError if there are none.
    """
    command = f"ablatio train source={source} source.path={example}"
    if not path or "\0" in path:
        raise UserError(f"source.path={path!r}: source={source} needs a file, a folder or a glob.\n    try: {command}")
    place = Path(path).expanduser()
    with readable(place):
        # A name may hold a colon itself: it is a separator only if there is no such file.
        if ":" in path and not place.exists():
            parts = [find_files(part, source, endings, example) for part in path.split(":")]
            return [file for files in parts for file in files]
        if place.is_file():
            return [place]
        if place.is_dir():
            return _files_of_folder(place, source, endings, command)
        # Path.glob does not accept absolute patterns.
        matches = [Path(m) for m in sorted(glob.glob(str(place), recursive=True)) if Path(m).is_file()]  # noqa: PTH207
    if not matches:
        raise UserError(f"source.path: there is no file {place}{_nearest(place)}\n    try: {command}")
    return matches


def _files_of_folder(place: Path, source: str, endings: Sequence[Sequence[str]], command: str) -> list[Path]:
    found = [f for f in sorted(place.rglob("*")) if f.is_file()]

    def having(group: Sequence[str]) -> list[Path]:
        return [f for f in found if f.name.endswith(tuple(e + z for e in group for z in ("", *COMPRESSIONS)))]

    groups = [(group, having(group)) for group in endings]
    # One group alone: a folder often holds the same documents twice, as text and as JSON.
    chosen = next((files for _, files in groups if files), [])
    if chosen:
        rest = [f for _, files in groups for f in files if f not in chosen]
        if rest:
            log_once(
                f"source.path: of the folder {place}, {len(chosen)} file(s) as {chosen[0].name} are read, and "
                f"{len(rest)} as {rest[0].name} are not; a glob chooses others: 'source.path={place}/*{rest[0].suffix}'"
            )
        return chosen
    others = f"; it holds {len(found)} other file(s), as {found[0].name}" if found else ""
    globbed = f"ablatio train source={source} 'source.path={place}/**/*.*'" if found else command
    wanted = " or ".join(ending for group in endings for ending in group)
    raise UserError(f"source.path: the folder {place} has no {wanted} file{others}.\n    try: {globbed}")


@functools.lru_cache(maxsize=1000)
def log_once(message: str) -> None:
    """Log a warning the first time that it comes: sources are read several times in a run."""
    log.warning("%s", message)


def _nearest(place: Path) -> str:
    names = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    close = get_close_matches(place.name, names, n=1)
    return f"; did you mean {place.parent / close[0]}?" if close else f" (looked from {Path.cwd()})"


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn errors of reading `file` into a UserError, or an EnvironmentFault if the memory does not suffice."""
    quoted = shlex.quote(str(file))
    try:
        yield
    except PermissionError:
        raise UserError(f"{file}: you have no permission to read it.\n    try: chmod u+r {quoted}") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(file, error) from None
    except OSError as error:
        if error.errno is None and file.suffix == ".zst":  # what pyarrow raises
            raise _damaged(file, error) from None
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).\n    try: ls -l {quoted}") from None
    except MemoryError:
        raise EnvironmentFault(
            f"{file}: reading it needs more memory than this process has.\n    try: split it into several files"
        ) from None


def read_all(items: Iterable[T], unit: str) -> list[T]:
    """Return the items of a source as a list; EnvironmentFault if they need more memory than the process has."""
    found: list[T] = []
    try:
        found.extend(items)
    except MemoryError:
        count, found = len(found), []  # the memory for the message is taken from them
        raise EnvironmentFault(
            f"the {unit} of the source need more memory than this process has: {count} were read.\n"
            "    try: a part of the files with source.path=FILE"
        ) from None
    return found


def _damaged(file: Path, error: Exception) -> UserError:
    test = _TESTS.get(file.suffix, "gzip --test")
    return UserError(f"{file}: a damaged {file.suffix} archive ({error}).\n    try: {test} {shlex.quote(str(file))}")


class _Expanded(io.RawIOBase):
    """The decompressed content of an archive; UserError for one that expands beyond what data do.

    Of an archive that is made to fill the memory, a thousandth reaches the disk: it is refused early.
    """

    def __init__(self, inner: Any, file: Path) -> None:
        self.inner, self.file, self.total = inner, file, 0
        self.limit = max(EXPANSION_FREE, EXPANSION_LIMIT * file.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.inner.read(len(buffer))
        buffer[: len(data)] = data
        self.total += len(data)
        if self.total > self.limit:
            reader = COMPRESSIONS[self.file.suffix]
            raise UserError(
                f"{self.file}: the archive expands to more than {self.limit >> 20} MiB, over {EXPANSION_LIMIT} times "
                f"its size, which is more than text does; expected an archive of data\n    try: {reader} "
                f"{shlex.quote(str(self.file))} | head -c 1000, and if this is data, decompress it to a plain file"
            )
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


def opened(file: Path) -> IO[bytes]:
    """Open a file for reading, decompressed according to its ending; call it inside `readable`."""
    if file.suffix not in COMPRESSIONS:
        return file.open("rb")
    inner: Any
    if file.suffix == ".gz":
        inner = gzip.GzipFile(file, "rb")
    elif file.suffix == ".xz":
        inner = lzma.LZMAFile(file, "rb")  # noqa: SIM115 (closed by _Expanded)
    else:
        import pyarrow

        with file.open("rb"):  # pyarrow's error for a missing permission has no number
            pass
        inner = pyarrow.input_stream(str(file), compression="zstd")
    return cast(IO[bytes], io.BufferedReader(_Expanded(inner, file), _CHUNK))


def read_bytes(file: Path) -> bytes:
    """Return the whole decompressed content; call it inside `readable`."""
    with opened(file) as stream:
        return b"".join(iter(functools.partial(stream.read, _CHUNK), b""))


def read_text(file: Path) -> str:
    """Return the whole content as text; UserError if it is not UTF-8."""
    with readable(file):
        return utf8(read_bytes(file), file, 0)


def read_parts(file: Path, separator: str) -> Iterator[str]:
    """Yield the texts between the separators of a file, as `str.split`, with one of them in memory at a time."""
    cut, held, tail, offset = separator.encode(), list[bytes](), b"", 0
    with readable(file), opened(file) as stream:
        while chunk := stream.read(_CHUNK):
            held.append(chunk)
            if cut not in tail + chunk:  # a separator may begin in the chunk before
                tail = (tail + chunk)[-len(cut) :]
                continue
            *parts, rest = b"".join(held).split(cut)
            for part in parts:
                yield utf8(part, file, offset)
                offset += len(part) + len(cut)
            held, tail = [rest], rest[-len(cut) :]
        yield utf8(b"".join(held), file, offset)


def read_lines(file: Path, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line, with its line end; UserError for a line of more than `LINE_LIMIT` bytes."""
    offset = number = 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise invalid_data(
                Place(file, "line", number), f"more than {LINE_LIMIT >> 20} MiB without a line end",
                "one record per line", f"head -c 1000 {shlex.quote(str(file))}",
            )  # fmt: skip
        yield number, utf8(line, file, offset)
        offset += len(line)


def utf8(raw: bytes, file: Path, offset: int) -> str:
    """Decode `raw`, which begins at byte `offset` of the file's content, without a byte order mark at its beginning."""
    quoted = shlex.quote(str(file))
    archive = next((e for e, magic in _MAGIC.items() if offset == 0 and raw.startswith(magic)), "")
    if archive:
        raise invalid_data(
            Place(file), f"an archive without the ending {archive}", "UTF-8 text, or an archive with its ending",
            f"mv {quoted} {shlex.quote(f'{file}{archive}')}",
        )  # fmt: skip
    # UTF-16 is full of NUL bytes; the later message names the true reason and its command.
    utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not utf16 and (nul := raw.find(0)) >= 0:
        raise UserError(
            f"{file}: byte {offset + nul} is NUL, so this is not text; expected UTF-8.\n    try: file {quoted}"
        )
    skip = len(_BOM) if offset == 0 and raw.startswith(_BOM) else 0
    try:
        return raw[skip:].decode()
    except UnicodeDecodeError as error:
        at = offset + skip + error.start
        guess, hint = ("UTF-16", " (it begins as UTF-16 does)") if utf16 else ("LATIN1", "")
        raise UserError(
            f"{file}: byte {at} (0x{error.object[error.start]:02x}) is not UTF-8{hint}; expected UTF-8 text.\n"
            f"    try: iconv -f {guess} -t UTF-8 {quoted} > converted.txt"
        ) from None


def files_digest(files: Sequence[Path], *knobs: str) -> str:
    """Return a sha256 of the files' contents in order, their suffixes and the knobs; independent of their location."""
    parts = []
    for file in files:
        with readable(file):
            # The suffix decides how a file is read; its name and folder do not, so that a moved corpus keeps its cache.
            parts.append((file.suffix, content_digest(file)))
    return hashlib.sha256(json.dumps([knobs, parts]).encode()).hexdigest()


def content_digest(file: Path) -> str:
    """Return the sha256 of a file; that of a large one is remembered until its size, inode or times change.

    So a corpus of any size is read for its digest once, not at the start of every run.  Call it inside `readable`.
    """
    stat = file.stat()
    if stat.st_size < REMEMBERED:
        return _sha256(file)
    identity = json.dumps([str(file.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns])
    entry = cache_root() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    # What cannot be read, or was cut short, is computed again.
    with suppress(OSError):
        known = entry.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    found = _sha256(file)
    # A file that is still being written may change again within the resolution of its times, unnoticed.
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED:
        with suppress(AblatioError):  # a cache that cannot be written
            make_folder(entry.parent)
            write_text(entry, found)
    return found


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
