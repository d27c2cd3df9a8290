"""Tables for papers: LaTeX for the package booktabs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ablatio.report.escape import latex

if TYPE_CHECKING:
    from ablatio.report.analysis.findings import Findings
    from ablatio.report.statistics import Pair

COMPARED = ("difference", r"95\,\% interval", "$p$")


def tabular(head: Sequence[str], align: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a tabular of cells in LaTeX.  align: one letter per column; notes: lines below the table, in LaTeX."""
    below = [rf"\multicolumn{{{len(head)}}}{{l}}{{\footnotesize {note}}} \\" for note in notes]
    lines = [
        rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", *below, r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def arms_latex(findings: Findings) -> str:
    """Arms with n, mean, sd and, where they are compared with one arm, difference, interval and corrected p.

    Of arms that are compared in pairs, a second table has the pairs.  An arm with another budget than the baseline's
    is marked, and a diverged run is counted.
    """
    found = findings.comparison
    against = {p.a: p for p in found.pairs} if found and (found.baseline or found.best) else {}
    lost = any(row.arm.count("diverged") for row in findings.rows)
    head = ["arm", "$n$", latex(findings.metric), "sd", *(COMPARED if against else ()), *(["diverged"] if lost else [])]
    rows, notes = list[list[str]](), list[str]()
    for row in findings.rows:
        mark = ""
        if row.unmatched:
            amounts = ", ".join(f"{row.residual[k]:+.1%} {k.replace('_', ' ')}" for k in row.unmatched)
            notes.append(rf"$^{{{len(notes) + 1}}}$ than the baseline: {latex(amounts)}")
            mark = f"$^{{{len(notes)}}}$"
        cells = [latex(row.arm.name) + mark, str(row.n), _number(row.mean), _number(row.sd)]
        cells += _compared(against.get(row.arm.name)) if against else []
        rows.append([*cells, *([f"{row.arm.count('diverged')} of {len(row.arm.runs)}"] if lost else [])])
    text = "".join(f"% {latex(line)}\n" for line in _about(findings))
    text += tabular(head, "l" + "r" * (len(head) - 1), rows, notes)
    if found and found.pairs and not against:
        pairs = [[latex(p.a), latex(p.b), str(p.difference.n), *_compared(p)] for p in found.pairs]
        text += "\n" + tabular(["arm", "minus", "$n$", *COMPARED], "llrrrr", pairs)
    return text


def _about(findings: Findings) -> Iterator[str]:
    """Comment lines: the package, and how the numbers were made."""
    yield r"needs \usepackage{booktabs}"
    if findings.caption:
        yield findings.caption


def _compared(pair: Pair | None) -> list[str]:
    """Cells of a difference under COMPARED; empty for the arm that the others are compared with."""
    if pair is None or math.isnan(pair.difference.mean):
        return [""] * len(COMPARED)
    low, high = pair.interval
    star = "^{*}" if pair.corrected else ""
    interval = "" if math.isnan(low) else f"$[{low:+.4f}, {high:+.4f}]{star}$"
    p = "" if math.isnan(pair.p) else "$< 0.001$" if pair.p < 0.001 else f"${pair.p:.3f}$"
    return [f"${pair.difference.mean:+.4f}$", interval, p]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"${value:.4f}$"
