"""Shrunk means and probabilities to be the best, as CSV and in words."""

from __future__ import annotations

from collections.abc import Iterator

from ablatio.report.analysis.findings import Findings
from ablatio.report.escape import csv_text
from ablatio.report.words import Language, say

HEAD = ("arm", "n", "mean", "sd", "shrunk_mean", "shrunk_sd", "probability_best")


def shrunk_csv(findings: Findings) -> str:
    """One line per arm, the best first; arms without a value in the shared seeds have empty cells."""
    rows = []
    for row in findings.rows:
        found = findings.shrunk.get(row.arm.name)
        rows.append(
            [row.arm.label, row.n, row.mean, row.sd, *((found.mean, found.sd, found.best) if found else (None,) * 3)]
        )
    return csv_text(HEAD, rows)


def shrunk_in_words(findings: Findings, language: Language = "en") -> Iterator[str]:
    """Each arm with its shrunk mean and its probability to be the best, the most probable first."""
    for name, found in sorted(findings.shrunk.items(), key=lambda item: -item[1].best):
        figures = {"mean": f"{found.mean:.4f}", "sd": f"{found.sd:.4f}", "best": f"{found.best:.2f}"}
        yield say("shrunk", language, name=name, **figures)
