"""Text from others made harmless, per output: an arm's name is whatever a config or a plugin says."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = {c: "\\" + c for c in "\\|*_[]`~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def visible(text: object) -> str:
    """Control characters, escape codes and changes of direction as their codes: \\x1b[2J; newlines as spaces."""
    return "".join(_shown(c) for c in " ".join(str(text).splitlines()))


def lines_of(text: object) -> str:
    """The same, with its line breaks."""
    return "\n".join(map(visible, str(text).split("\n")))


def _shown(character: str) -> str:
    # Cc: control; Cf: changes of direction, zero width; Cs: half a surrogate pair, which has no UTF-8
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def terminal(text: object) -> str:
    """For rich: neither escape codes nor [markup]."""
    from rich.markup import escape

    return escape(visible(text))


def markdown(text: object) -> str:
    """One cell of a table: no markup, no HTML, no new cell."""
    return "".join(_MARKDOWN.get(c, c) for c in visible(text))


def cell(value: Any) -> str:
    """One cell of a CSV: what a spreadsheet would take for a formula begins with an apostrophe; numbers stay."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(value)
    text = visible(value)
    return "'" + text if text.lstrip(" ").startswith(_FORMULA) or str(value)[:1] in _FORMULA else text


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A whole CSV, lines ended by a newline on every system."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(h) for h in header])
    writer.writerows([cell(v) for v in row] for row in rows)
    return out.getvalue()


def script_json(data: Any) -> str:
    """JSON for a block inside a page: no character in it can end the block or begin a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
