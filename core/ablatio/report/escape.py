"""Escape text from configs and plugins for each output: terminal, Markdown, CSV, LaTeX, JSON inside HTML."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = {c: "\\" + c for c in "\\|*_[]`~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}

_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
}  # fmt: skip
_LIGATURE = re.compile(r"([-',])(?=\1)")
_NOT_IN_OT1 = "\xab\xbb\xd0\xde\xf0\xfe"  # of Latin-1: guillemets, eth and thorn


def visible(text: object) -> str:
    r"""Replace control characters, escape codes and direction marks by their codes (`\\x1b[2J`), newlines by spaces."""
    found = str(text)
    if found.isprintable():  # nearly all: neither line breaks nor any of the categories of `_shown`
        return found
    return "".join(_shown(c) for c in " ".join(found.splitlines()))


def lines_of(text: object) -> str:
    """Like `visible`, but keep line breaks."""
    return "\n".join(map(visible, str(text).split("\n")))


def _shown(character: str) -> str:
    # Cc: control; Cf: direction marks and zero width; Cs: lone surrogates, which have no UTF-8
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def terminal(text: object) -> str:
    """Escape for rich: neither escape codes nor [markup]."""
    from rich.markup import escape

    return escape(visible(text))


def markdown(text: object) -> str:
    """Escape for one cell of a Markdown table: no markup, no HTML, no new cell."""
    return "".join(_MARKDOWN.get(c, c) for c in visible(text))


def latex(text: object) -> str:
    """Escape for LaTeX text: no command, no math, no new cell, no ligature, and no argument of the row before."""
    found = _LIGATURE.sub(r"\1{}", "".join(_LATEX.get(c, c) for c in visible(text)))
    # After a row, `\\` would take a star or a bracket for its own argument, across the line end, too.
    return "{}" + found if found[:1] in ("[", "*") else found


def beyond_pdflatex(text: str) -> str:
    """Characters of a text at which pdfLaTeX stops with its usual font encoding, each once."""
    return "".join(dict.fromkeys(c for c in text if c > "\xff" or c in _NOT_IN_OT1))


def cell(value: Any) -> str:
    """Format one CSV cell; text that a spreadsheet would run as a formula gets a leading apostrophe, numbers do not."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(value)
    text = visible(value)
    # A spreadsheet skips leading spaces; tab and return are replaced in `text`, so the value is looked at as well.
    return "'" + text if text.lstrip(" ").startswith(_FORMULA) or str(value)[:1] in _FORMULA else text


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a whole CSV file as text, with `\n` as the line end on every system."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(h) for h in header])
    writer.writerows([cell(v) for v in row] for row in rows)
    return out.getvalue()


def script_json(data: Any) -> str:
    """Serialize to JSON for a script block: no character in it can close the block or open a comment."""
    # ASCII: U+2028 and U+2029 end a line in older JavaScript, and no encoding of the page can change a character.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
