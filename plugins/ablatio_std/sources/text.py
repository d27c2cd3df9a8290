"""Sources of text: text files, and the two corpora that ship with ablatio (origins: corpora/NOTICE.md).

Files may be plain, .gz, .xz or .zst.  A file that cannot be read raises a UserError that names the place.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ablatio import Range, sources
from ablatio.data.data_files import files_digest, find_files, log_once, read_parts, read_text
from ablatio.data.records import ENDINGS, TABLES, UnusedFields, kind_of
from ablatio.data.types import Document

from ._records import PATH, text_records

CORPORA = Path(__file__).parents[1] / "corpora"
_ENDINGS = ((".txt", ".md"),)
_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
_HELD_OUT_TAIL = 0.1


@sources.register("text")
class Text:
    r"""UTF-8 text: a file, the .txt and .md files of a folder and its subfolders, or a glob; one document per file.

    `separator` splits each file into several documents: with "\n\n" each paragraph is one (\n, \r and \t may be written
    as two characters).  A single file that stays one document cannot be split by document: its last tenth, from the end
    of a line on, is the validation split.  A Parquet or Arrow file is read as its column `text`, one document per row.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        separator: Annotated[str, r"text between two documents of a file, as \n\n; empty: one document per file"] = "",
    ) -> None:
        self.path, self.separator = path, re.sub(r"\\[nrt]", lambda m: _ESCAPES[m[0]], separator)
        self.unused_fields: dict[str, int] = {}

    def _files(self) -> list[Path]:
        return find_files(self.path, "text", _ENDINGS, "book.txt")

    @property
    def names_splits(self) -> bool:
        """True for a single file that is one document: its last tenth is held out."""
        return not self.separator and len(self._files()) == 1

    def documents(self) -> Iterator[Document]:
        files, unused = self._files(), UnusedFields()
        for file in files:
            kind = kind_of(file)
            if kind in TABLES:
                for record in text_records(file, "text", unused):
                    yield Document(record.fields["text"], record.id)
                continue
            # A wrong ending is likely a mistake, but the text may be meant: it is read, and the log says so.
            if any(kind in group for group in ENDINGS):
                log_once(f"{file} is read as plain text; source=jsonl reads the text of its records")
            if len(files) == 1 and not self.separator:
                yield from _with_tail(read_text(file), file.name)
                continue
            texts = read_parts(file, self.separator) if self.separator else [read_text(file)]
            for number, text in enumerate(texts, 1):
                if text.strip():
                    yield Document(text, f"{file.name}:{number}" if self.separator else file.name)
        self.unused_fields = unused.close("text")

    def fingerprint(self) -> str:
        return files_digest(self._files(), "text-1", self.separator)


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
        rows = [record.fields for record in text_records(CORPORA / "sotu.jsonl.xz", "text")]
        validation = {id(row) for party in {r["party"] for r in rows} for row in self._chosen(rows, party)}
        for record in rows:
            if (record["year"], record["president"]) == self.repeated or record["year"] < (self.since or 0):
                continue
            split: Literal["train", "validation"] = "validation" if id(record) in validation else "train"
            yield Document(record["text"], f"{record['year']} {record['president']}", split)

    def _chosen(self, records: Sequence[dict[str, Any]], party: str) -> list[dict[str, Any]]:
        of_party = [record for record in records if record["party"] == party]
        # By party, so that a party with few messages of late is held out too.
        count = max(1, round(len(of_party) * self.newest))
        # The text breaks ties of the year: the order of the file must not matter.
        newest = sorted(of_party, key=lambda record: (record["year"], record["text"]))[-count:]
        by_hash = sorted(newest, key=lambda record: hashlib.sha256(record["text"].encode()).digest())
        return by_hash[: math.ceil(count * self.held_out)]

    def fingerprint(self) -> str:
        since = () if self.since is None else (str(self.since),)
        return files_digest([CORPORA / "sotu.jsonl.xz"], "sotu-2", *since)


@sources.register("zh_classics")
class ChineseClassics:
    """Song lyrics, the Book of Songs and the Analects: 21,197 Chinese texts, 5.5 MB of UTF-8; split by text hash."""

    names_splits = False

    def documents(self) -> Iterator[Document]:
        for record in text_records(CORPORA / "zh_classics.jsonl.xz", "text"):
            held = record.fields
            yield Document(held["text"], f"{held['collection']}:{record.number} {held['title']}")

    def fingerprint(self) -> str:
        return files_digest([CORPORA / "zh_classics.jsonl.xz"], "zh_classics-1")


def _with_tail(text: str, name: str) -> Iterator[Document]:
    """One text as two documents, the last tenth for validation, cut after the end of a line, else after a space."""
    # At the end of a line, so that neither part begins inside a word or a sentence.
    middle = len(text) - int(len(text) * _HELD_OUT_TAIL)
    cut = (text.rfind("\n", 0, middle) + 1) or (text.rfind(" ", 0, middle) + 1) or middle
    if text[:cut].strip():
        yield Document(text[:cut], f"{name}:1", "train")
    if text[cut:].strip():
        yield Document(text[cut:], f"{name}:2", "validation")
