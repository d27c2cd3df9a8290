"""Lay out the pages of help in the columns of the terminal."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping

NARROWEST, WIDEST = 80, 120  # columns: longer lines are hard to read
ROW = re.compile(r"(?P<word> +\S.*?  +)(?P<meaning>\S.*)")


def columns() -> int:
    """Columns of a page: those of the terminal, within limits."""
    return max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))


def wrapped(text: str, width: int, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """Lines of a paragraph, broken between words alone."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def rows(words: Mapping[str, str], width: int, column: int) -> list[str]:
    """Words and their meanings, which begin at `column`; a word that is longer has its own line."""
    lines: list[str] = []
    for word, meaning in words.items():
        body = wrapped(meaning, width - column)
        if len(word) + 1 > column or not body:
            lines.append(word)
        else:
            lines.append(f"{word:<{column}}{body.pop(0)}")
        lines += [" " * column + line for line in body]
    return lines


def fitted(page: str) -> str:
    """A page whose lines fit; a row `  word  meaning` goes on below its meaning, another line below itself."""
    return "\n".join(part for line in page.splitlines() for part in _fitted(line, columns()))


def _fitted(line: str, width: int) -> Iterator[str]:
    row = ROW.fullmatch(line)
    if len(line) <= width or not line.strip():
        yield line
    elif row is not None:
        indent = " " * len(row["word"])
        yield from wrapped(row["meaning"], width, initial_indent=row["word"], subsequent_indent=indent)
    else:
        indent = line[: len(line) - len(line.lstrip())]
        yield from wrapped(line.strip(), width, initial_indent=indent, subsequent_indent=indent)
