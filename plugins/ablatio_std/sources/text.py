"""Sources of text: text files, JSON Lines, and the two corpora that ship with ablatio (origins: corpora/NOTICE.md).

Files may be plain, .gz or .xz.  A file that cannot be read raises a UserError that names the place.
"""

import glob
import gzip
import hashlib
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

from ablatio import Range, sources
from ablatio.data.types import Document
from ablatio.errors import UserError

CORPORA = Path(__file__).parents[1] / "corpora"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
_BOM = b"\xef\xbb\xbf"
_HELD_OUT_TAIL = 0.1


@sources.register("text")
class Text:
    r"""UTF-8 text: a file, the .txt and .md files of a folder and its subfolders, or a glob; one document per file.

    `separator` splits each file into several documents: with "\n\n" each paragraph is one (\n, \r and \t may be written
    as two characters).  A single file that stays one document cannot be split by document: its last tenth, from the end
    of a line on, is the validation split.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, "a file, a folder or a glob; .xz and .gz are decompressed"] = "",
        separator: Annotated[str, r"text between two documents of a file, as \n\n; empty: one document per file"] = "",
    ) -> None:
        self.path, self.separator = path, re.sub(r"\\[nrt]", lambda m: _ESCAPES[m[0]], separator)

    def documents(self) -> Iterator[Document]:
        files = _find(self.path, "text", (".txt", ".md"))
        if len(files) == 1 and not self.separator:
            yield from _with_tail(_read_text(files[0]), files[0].name)
            return
        for file in files:
            whole = _read_text(file)
            texts = whole.split(self.separator) if self.separator else [whole]
            for number, text in enumerate(texts, 1):
                if text.strip():
                    yield Document(text, f"{file.name}:{number}" if self.separator else file.name)

    def fingerprint(self) -> str:
        return _fingerprint(_find(self.path, "text", (".txt", ".md")), "text-1", self.separator)


@sources.register("jsonl")
class JsonLines:
    """One JSON object per line with its text in the field `text`: a file, the .jsonl files of a folder, or a glob."""

    def __init__(
        self,
        *,
        path: Annotated[str, "a file, a folder or a glob; .xz and .gz are decompressed"] = "",
        text: Annotated[str, "field that holds the text"] = "text",
    ) -> None:
        self.path, self.text = path, text

    def documents(self) -> Iterator[Document]:
        for file in _find(self.path, "jsonl", (".jsonl",)):
            for number, record in _records(file, self.text):
                yield Document(record[self.text], f"{file.name}:{number}")

    def fingerprint(self) -> str:
        return _fingerprint(_find(self.path, "jsonl", (".jsonl",)), "jsonl-1", self.text)


@sources.register("sotu")
class StateOfTheUnion:
    """The 233 State of the Union messages of 1790 to 2021: 10.8 MB of English, public domain.

    The validation split holds recent messages of each party: of the newest eighth (at least one message), the half
    whose texts have the smallest sha256.  The split thus depends on the messages alone, not on their order in the file,
    and covers the English of every era in the training split.  One message is in neither split: Andrew Johnson's of
    1867, since a tenth of it occurs word for word in his held-out message of 1868.
    """

    newest, held_out = 1 / 8, 1 / 2
    repeated = (1867, "Andrew Johnson")

    def __init__(
        self, *, since: Annotated[int | None, Range(1790, 2000), "first year of the messages; null: all"] = None
    ) -> None:
        self.since = since

    def documents(self) -> Iterator[Document]:
        records = [record for _, record in _records(CORPORA / "sotu.jsonl.xz", "text")]
        validation = {id(record) for party in {r["party"] for r in records} for record in self._chosen(records, party)}
        for record in records:
            if (record["year"], record["president"]) == self.repeated or record["year"] < (self.since or 0):
                continue
            split: Literal["train", "validation"] = "validation" if id(record) in validation else "train"
            yield Document(record["text"], f"{record['year']} {record['president']}", split)

    def _chosen(self, records: Sequence[dict[str, Any]], party: str) -> list[dict[str, Any]]:
        of_party = [record for record in records if record["party"] == party]
        count = max(1, round(len(of_party) * self.newest))
        newest = sorted(of_party, key=lambda record: (record["year"], record["text"]))[-count:]
        by_hash = sorted(newest, key=lambda record: hashlib.sha256(record["text"].encode()).digest())
        return by_hash[: math.ceil(count * self.held_out)]

    def fingerprint(self) -> str:
        since = () if self.since is None else (str(self.since),)
        return _fingerprint([CORPORA / "sotu.jsonl.xz"], "sotu-2", *since)


@sources.register("zh_classics")
class ChineseClassics:
    """Song lyrics, the Book of Songs and the Analects: 21,197 Chinese texts, 5.5 MB of UTF-8; split by text hash."""

    def documents(self) -> Iterator[Document]:
        for number, record in _records(CORPORA / "zh_classics.jsonl.xz", "text"):
            yield Document(record["text"], f"{record['collection']}:{number} {record['title']}")

    def fingerprint(self) -> str:
        return _fingerprint([CORPORA / "zh_classics.jsonl.xz"], "zh_classics-1")


def _find(path: str, source: str, endings: tuple[str, ...]) -> list[Path]:
    """Files of a path, folder or glob, sorted by name.  Raises UserError if there are none."""
    command = f"ablatio train source={source} source.path={'book.txt' if source == 'text' else 'data.jsonl'}"
    if not path or "\0" in path:
        raise UserError(f"source.path={path!r}: source={source} needs a file, a folder or a glob.\n    try: {command}")
    place = Path(path).expanduser()
    with _readable(place):
        if place.is_file():
            return [place]
        if place.is_dir():
            found = [f for f in sorted(place.rglob("*")) if f.is_file()]
            chosen = [f for f in found if f.name.endswith(tuple(e + z for e in endings for z in ("", *_OPENERS)))]
            if chosen:
                return chosen
            others = f"; it holds {len(found)} other file(s), as {found[0].name}" if found else ""
            globbed = f"ablatio train source={source} 'source.path={place}/**/*.*'" if found else command
            wanted = " or ".join(endings)
            raise UserError(f"source.path: the folder {place} has no {wanted} file{others}.\n    try: {globbed}")
        # Path.glob does not accept absolute patterns.
        matches = [Path(m) for m in sorted(glob.glob(str(place), recursive=True)) if Path(m).is_file()]  # noqa: PTH207
    if not matches:
        raise UserError(f"source.path: there is no file {place}{_nearest(place)}\n    try: {command}")
    return matches


def _nearest(place: Path) -> str:
    names = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    close = get_close_matches(place.name, names, n=1)
    return f"; did you mean {place.parent / close[0]}?" if close else f" (looked from {Path.cwd()})"


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise UserError(f"{file}: you have no permission to read it.\n    try: chmod u+r {file}") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        tool = "xz" if file.suffix == ".xz" else "gzip"
        raise UserError(f"{file}: a damaged {file.suffix} archive ({error}).\n    try: {tool} --test {file}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).\n    try: ls -l {file}") from None


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], _OPENERS.get(file.suffix, Path.open)(file, "rb"))


def _fingerprint(files: Sequence[Path], *knobs: str) -> str:
    """sha256 of the files' contents in order, their suffixes and the knobs; independent of where the files are."""
    parts = []
    for file in files:
        with _readable(file), file.open("rb") as stream:
            parts.append((file.suffix, hashlib.file_digest(stream, "sha256").hexdigest()))
    return hashlib.sha256(json.dumps([knobs, parts]).encode()).hexdigest()


def _read_text(file: Path) -> str:
    with _readable(file), _open(file) as stream:
        raw = stream.read()
    return _utf8(raw, file, 0)


def _utf8(raw: bytes, file: Path, offset: int) -> str:
    """Decode `raw`, which begins at byte `offset` of the file's content."""
    utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not utf16 and (nul := raw.find(0)) >= 0:
        raise UserError(
            f"{file}: byte {offset + nul} is NUL, so this is not text; expected UTF-8.\n    try: file {file}"
        )
    skip = len(_BOM) if offset == 0 and raw.startswith(_BOM) else 0
    try:
        return raw[skip:].decode()
    except UnicodeDecodeError as error:
        at = offset + skip + error.start
        guess, hint = ("UTF-16", " (it begins as UTF-16 does)") if utf16 else ("LATIN1", "")
        raise UserError(
            f"{file}: byte {at} (0x{error.object[error.start]:02x}) is not UTF-8{hint}; expected UTF-8 text.\n"
            f"    try: iconv -f {guess} -t UTF-8 {file} > converted.txt"
        ) from None


def _with_tail(text: str, name: str) -> Iterator[Document]:
    """One text as two documents, the last tenth for validation, cut after the end of a line, else after a space."""
    middle = len(text) - int(len(text) * _HELD_OUT_TAIL)
    cut = (text.rfind("\n", 0, middle) + 1) or (text.rfind(" ", 0, middle) + 1) or middle
    if text[:cut].strip():
        yield Document(text[:cut], f"{name}:1", "train")
    if text[cut:].strip():
        yield Document(text[cut:], f"{name}:2", "validation")


def _records(file: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, JSON object) for each line that is not blank; the object's `field` is text."""
    offset = 0
    with _readable(file), _open(file) as stream:
        for number, line in enumerate(stream, 1):
            text = _utf8(line, file, offset)
            offset += len(line)
            if text.strip():
                yield number, _record(text, field, f"{file}, line {number}")


def _record(line: str, field: str, where: str) -> dict[str, Any]:
    example = f'one object per line, as {{{json.dumps(field)}: "..."}}'
    plain = "    try: ablatio train source=text source.path=FILE, if it is plain text"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); expected {example}.\n{plain}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a {type(record).__name__}; expected {example}.\n{plain}")
    value = record.get(field)
    if isinstance(value, str):
        return record
    came = f"the field {field!r} holds {type(value).__name__}" if field in record else f"there is no field {field!r}"
    texts = [name for name, other in record.items() if isinstance(other, str)]
    close = get_close_matches(field, texts, n=1, cutoff=0.5) or texts[:1] or ["FIELD"]
    raise UserError(
        f"{where}: {came}; expected text. Its fields: {', '.join(map(repr, list(record)[:20])) or 'none'}.\n"
        f"    try: ablatio train source=jsonl source.path=FILE source.text={close[0]}"
    )
