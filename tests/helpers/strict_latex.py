"""Read LaTeX tables as TeX's scanner does, and refuse whatever a compiler would stop at or print as something else."""

import re
from dataclasses import dataclass, field

TEXT = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
    "textbar": "|", "textasciigrave": "`",
}  # fmt: skip
ESCAPED = "&%$#_{}"
RULES = ("toprule", "midrule", "bottomrule")
TOKEN = re.compile(r"\\([A-Za-z]+)[ \n]*|\\(\\)|\\(.)|([{}$&^_#~%|`])|(.)", re.DOTALL)
LIGATURE = re.compile(r"--|``|''|\?`|!`|<<|>>")


@dataclass
class Tabular:
    """A table: its column letters, rows of cells as printed text (math in $), and rows that span all columns."""

    columns: str
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_tables(source: str) -> list[Tabular]:
    """All tables of a source that has nothing else but comments.  Raises AssertionError at what is no such LaTeX."""
    lines = [line for line in source.split("\n") if not line.startswith("%")]
    text = "\n".join(lines)
    found = []
    for part in re.split(r"(?=\\begin\{tabular\})", text):
        if not part.strip():
            continue
        match = re.fullmatch(r"\\begin\{tabular\}\{([lcr]+)\}\n(.*)\n\\end\{tabular\}\n*", part, re.DOTALL)
        assert match, part
        found.append(_table(match[1], match[2]))
    return found


def _table(columns: str, body: str) -> Tabular:
    table, rules = Tabular(columns), list[str]()
    assert "\\\\[" not in re.sub(r"\\\\\s+(?=\[)", r"\\\\", body), "a bracket after a row is taken for its argument"
    assert not re.search(r"\\\\\s*\*", body), "a star after a row is taken for its argument"
    for line in re.split(r"(?<!\\)\\\\(?:\s*\n|$)", body):
        rest = line.strip()
        while rule := re.match(rf"\\({'|'.join(RULES)})\s*", rest):
            rules.append(rule[1])
            rest = rest[rule.end() :]
        if not rest:
            continue
        if span := re.fullmatch(r"\\multicolumn\{(\d+)\}\{l\}\{\\footnotesize (.*)\}", rest, re.DOTALL):
            assert int(span[1]) == len(columns), "a note spans all columns"
            note = printed(span[2])
            assert len(note) == 1, "a note is one cell"
            table.notes += note
        else:
            cells = printed(rest)
            assert len(cells) == len(columns), f"{len(cells)} cells in {len(columns)} columns: {rest}"
            table.rows.append(cells)
    assert rules == list(RULES), rules
    return table


def printed(source: str) -> list[str]:
    """Cells of a row as a compiler prints them; math stays as its source between dollars."""
    cells, depth, math, plain = [""], 0, False, ""
    for match in TOKEN.finditer(source):
        word, newline, symbol, special, other = match.groups()
        assert not newline, f"a new row within a cell: {source}"
        assert other is None or (other >= " " and other != "\x7f") or other == "\n", f"a control character: {source!r}"
        here = plain + (other or "") if other else ""
        assert math or not LIGATURE.search(here), f"a ligature: {source}"
        plain = here[-1:] if other else ""
        if special == "{":
            depth += 1
        elif special == "}":
            depth -= 1
            assert depth >= 0, f"a group closes that was not opened: {source}"
        elif special == "$":
            math = not math
        elif special == "&":
            assert depth == 0 and not math, f"a column ends within a group: {source}"
            cells.append("")
            continue
        elif special in ("^", "_"):
            assert math, f"{special} outside of math: {source}"
        else:
            assert special is None, f"{special} is not escaped: {source}"
        if math or special == "$":
            assert word is None, f"a command in math: {source}"
            assert symbol is None, f"an escape in math: {source}"
            cells[-1] += special or other or ""
        elif word is not None:
            assert word in TEXT, f"an unknown command: {source}"
            cells[-1] += TEXT[word]
        elif symbol is not None:
            assert symbol in (*ESCAPED, ","), f"an unknown escape \\{symbol}: {source}"
            cells[-1] += "\u2009" if symbol == "," else symbol
        else:
            cells[-1] += other or ""
    assert depth == 0 and not math, f"a group or formula stays open: {source}"
    return [cell.strip() for cell in cells]
