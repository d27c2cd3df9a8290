"""Tasks over tables: each row becomes a question and its answer, written by patterns with the names of columns."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from ablatio import sources
from ablatio.data.data_files import files_digest, find_files, invalid_data
from ablatio.data.records import ENDINGS, BadRows, Record, checked_text, records
from ablatio.data.tables import no_column
from ablatio.data.types import Conversation, Document, Message
from ablatio.errors import UserError

from ._records import ON_ERROR, PATH, OnError, as_documents

_COLUMN = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@sources.register("table", paper="arXiv:2110.08207")
class Table:
    """Questions and answers from the rows of tables, by patterns as in P3 (Sanh et al. 2021).

    `{premise}` stands for the cell of that column, and `{label:no|maybe|yes}` for the word that its number chooses.
    Pattern i of `answer` belongs to pattern i of `prompt`.  Patterns with the roles of the columns exchanged, such as
    prompt="{answer}" and answer="{question}", give the reversed task; template=task writes a description in front.
    Rows that are equal in the columns of the first pattern stay in one split.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        prompt: Annotated[tuple[str, ...], "patterns of the question"] = ("{prompt}",),
        answer: Annotated[tuple[str, ...], "patterns of the answer, one per pattern of the question"] = (
            "{completion}",
        ),
        patterns: Annotated[
            Literal["one", "all"], "patterns used for each row: one, chosen by a hash of the row, or all"
        ] = "one",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        if not prompt or len(prompt) != len(answer):
            raise UserError(
                f"source.prompt has {len(prompt)} pattern(s) and source.answer {len(answer)}; expected as many, at "
                "least one\n    try: source.prompt=['{question}'] source.answer=['{answer}']"
            )
        self.path, self.pairs, self.patterns, self.on_error = (
            path, list(zip(prompt, answer, strict=True)), patterns, on_error,
        )  # fmt: skip
        self.skipped_rows = 0

    def conversations(self) -> Iterator[Conversation]:
        bad, used = BadRows(self.on_error == "skip"), 0
        for file in find_files(self.path, "table", ENDINGS, "data.csv"):
            for record in records(file, bad=bad):
                try:
                    found = list(self._of_row(record))
                except UserError as error:
                    bad(error)
                    continue
                used += 1
                yield from found
        self.skipped_rows = bad.close("table", used)

    def _of_row(self, record: Record) -> Iterator[Conversation]:
        # The key decides the split and the pattern, so both stay when further patterns are used.
        key = "\n".join(_filled(pattern, record) for pattern in self.pairs[0])
        chosen: Sequence[int] = range(len(self.pairs))
        if self.patterns == "one":
            # Other bytes than those of the split, of which the choice of a pattern must be independent.
            chosen = [int.from_bytes(hashlib.sha256(key.encode()).digest()[8:16], "big") % len(self.pairs)]
        for number in chosen:
            question, answer = (_filled(pattern, record) for pattern in self.pairs[number])
            if not question.strip() or not answer.strip():
                raise invalid_data(record.place, f"pattern {number + 1} gives an empty text", "cells with text")
            name = f"{record.id}.{number}" if len(self.pairs) > 1 else record.id
            yield Conversation((Message("user", question), Message("assistant", answer)), name, key=key)

    def documents(self) -> Iterator[Document]:
        yield from as_documents(self.conversations())

    def fingerprint(self) -> str:
        files = find_files(self.path, "table", ENDINGS, "data.csv")
        return files_digest(files, "table-1", repr(self.pairs), self.patterns, self.on_error)


def _filled(pattern: str, record: Record) -> str:
    """A pattern with the cells of a row; UserError for a column that the row does not have."""

    def cell(match: re.Match[str]) -> str:
        name, words = match[1], match[2]
        if name not in record.fields:
            raise no_column(record.place, name, list(record.fields))
        value = record.fields[name]
        return _text(value) if words is None else _word(words.split("|"), value, name, record)

    return checked_text(_COLUMN.sub(cell, pattern), f"the pattern {pattern!r}", record.place)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return " ".join(map(_text, value.values())) if isinstance(value, Mapping) else str(value)


def _word(words: Sequence[str], value: Any, name: str, record: Record) -> str:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < len(words):
        raise invalid_data(
            record.place, f"the column {name!r} holds {value!r}", f"a number from 0 to {len(words) - 1}, for a word"
        )
    return words[number]
