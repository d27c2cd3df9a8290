"""Tables for papers: LaTeX for the package booktabs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablatio.report.analysis.verdict_texts import TEXTS
from ablatio.report.captions import arms_caption
from ablatio.report.escape import beyond_pdflatex, latex, visible
from ablatio.report.numbers import p_cell
from ablatio.report.words import say

if TYPE_CHECKING:
    from ablatio.report.analysis.findings import Findings, Row
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


def preamble(text: str, caption: str) -> str:
    """Return the comment above tables: what they need, and their caption."""
    needs = [r"needs \usepackage{booktabs}"]
    if others := beyond_pdflatex(text):
        needs.append(f"needs XeLaTeX or LuaLaTeX and a font for {others}")
    return "".join(f"% {visible(line)}\n" for line in (*needs, caption) if line)


def arms_latex(findings: Findings) -> str:
    """Arms with n, mean, sd and, where they are compared with one arm, difference, interval and corrected p.

    Of arms that are compared in pairs, a second table has the pairs.  Notes below name budgets that are not those of
    the baseline, and p that are not those of a mean.
    """
    found = findings.comparison
    against = {p.a: p for p in found.pairs} if found and (found.baseline or found.best) else {}
    lost = any(row.arm.count("diverged") for row in findings.rows)
    fewer = any((p := against.get(row.arm.name)) and p.difference.n != row.n for row in findings.rows)
    head = ["arm", "$n$", latex(findings.metric), "sd", *(["pairs"] if fewer else []), *(COMPARED if against else ())]
    rows, notes = list[list[str]](), list[str]()
    for row in findings.rows:
        mark, pair = "", against.get(row.arm.name)
        if amounts := _more(row):
            notes.append(f"$^{{{len(notes) + 1}}}$ against the baseline: {latex(amounts)}")
            mark = f"$^{{{len(notes)}}}$"
        cells = [latex(row.arm.name) + mark, str(row.n), _number(row.mean), _number(row.sd)]
        cells += [str(pair.difference.n) if pair else ""] if fewer else []
        cells += _compared(pair) if against else []
        rows.append([*cells, *([f"{row.arm.count('diverged')} of {len(row.arm.runs)}"] if lost else [])])
    head += ["diverged"] if lost else []
    pairs = found.pairs if found else ()
    notes += [f"$^{{*}}$ interval {say('of one comparison')}"] if any(p.corrected for p in pairs) else []
    ranked = "$^{r}$ of signed ranks with diverged runs as the worst; no verdict on the mean"
    notes += [ranked] if any(p.ranked and not math.isnan(p.p) for p in pairs) else []
    text = tabular(head, "l" + "r" * (len(head) - 1), rows, notes if against else [])
    if pairs and not against:
        body = [[latex(p.a), latex(p.b), str(p.difference.n), *_compared(p)] for p in pairs]
        text += "\n" + tabular(["arm", "minus", "$n$", *COMPARED], "llrrrr", body, notes)
    return preamble(text, arms_caption(findings)) + text


def _more(row: Row) -> str:
    """`+12.0 % tokens`: budgets that are not the baseline's, without wall time, which depends on the machine."""
    words = TEXTS["en"]
    kept = [k for k in row.unmatched if k in words and k != "seconds"]
    same = "parameters" in kept and row.residual.get("trainable") == row.residual["parameters"]
    return ", ".join(f"{row.residual[k]:+.1%} {words[k]}" for k in kept if not (same and k == "trainable"))


def _compared(pair: Pair | None) -> list[str]:
    """Cells of a difference under COMPARED; empty for the arm that the others are compared with."""
    if pair is None or math.isnan(pair.difference.mean):
        return [""] * len(COMPARED)
    low, high = pair.difference.low, pair.difference.high
    star, rank = "^{*}" if pair.corrected else "", "^{r}" if pair.ranked else ""
    mean = "" if pair.ranked else f"${pair.difference.mean:+.4f}$"
    interval = "" if math.isnan(low) else f"$[{low:+.4f}, {high:+.4f}]{star}$"
    p = f"${text}{rank}$" if (text := p_cell(pair.p)) else ""
    return [mean, interval, p]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"${value:.4f}$"
