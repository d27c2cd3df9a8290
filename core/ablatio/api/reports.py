"""Write the report of a study to files, for `ablatio report` and `StudyFolder.report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablatio.report.analysis.findings import Findings
    from ablatio.report.statistics import Correction, Method
    from ablatio.report.words import Language


def find_in(
    folders: Sequence[Path],
    metric: str | None = None,
    baseline: str | None = None,
    correction: "Correction" = "holm",
    interval: "Method" = "t",
    *,
    alpha: float | None = None,
    margin: str | None = None,
    target: str | None = None,
) -> "Findings":
    """Analyze the runs in these folders, several of which count as one study.

    metric, baseline, correction, interval  as for `StudyFolder`
    alpha, margin, target                   instead of the study's own

    Raises UserError if the folders hold no runs.
    """
    from ablatio.report.analysis.findings import find
    from ablatio.report.read.table import read_table

    return find(
        read_table(folders), metric, baseline, correction=correction, method=interval, alpha=alpha, margin=margin,
        target=target,
    )  # fmt: skip


def write_report(
    findings: "Findings", folders: Sequence[Path], out: Path | None = None, *, going_on: bool = False,
    language: "Language" = "en",
) -> Path:  # fmt: skip
    """Write report.html, report.md, results.csv, costs.csv and arms.tex; return their folder, by default FOLDER/report.

    A study that estimates effects of settings also gets effects.csv and effects.tex; one of four arms or more gets
    shrunk.csv: means shrunk towards each other, probabilities to be the best.

    language  of report.md; the page has both, and the tables for programs and papers are in English
    going_on  True if the files will be written again: the page then loads itself anew while it is open
    """
    from ablatio.report.effects_table import effects_csv, effects_latex
    from ablatio.report.html.render import page_text
    from ablatio.report.latex import arms_latex
    from ablatio.report.markdown import markdown_text
    from ablatio.report.shrunk_table import shrunk_csv
    from ablatio.report.terminal import arm_table
    from ablatio.storage.atomic_write import make_folder, remove_stray, write_text

    out = make_folder(out or (folders[0] if len(folders) == 1 else Path()) / "report")
    remove_stray(out)  # of a report that was killed
    write_text(out / "results.csv", arm_table.results_csv(findings.table))
    write_text(out / "costs.csv", arm_table.costs_csv(findings.table))
    write_text(out / "arms.tex", arms_latex(findings))
    if findings.factors is not None:
        write_text(out / "effects.csv", effects_csv(findings.factors))
        write_text(out / "effects.tex", effects_latex(findings.factors))
    if findings.shrunk:
        write_text(out / "shrunk.csv", shrunk_csv(findings))
    write_text(out / "report.md", markdown_text(findings, language))
    write_text(out / "report.html", page_text(findings, script="reload.js" if going_on else ""))
    return out
