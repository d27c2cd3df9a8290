"""A study: `ablatio.run_study`, and its folder as an object."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.api import adapter
from ablatio.api.frames import frame
from ablatio.api.reports import find_in, write_report
from ablatio.api.session import executing
from ablatio.api.settings import words_of
from ablatio.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ablatio.report.analysis.findings import Findings
    from ablatio.report.analysis.verdict import Sentence
    from ablatio.report.read.run import Run
    from ablatio.report.statistics import Correction, Method, Pair


def run_study(
    *overrides: str, name: str | None = None, out: "str | Path | None" = None, quiet: bool = False
) -> "StudyFolder":
    """Run every arm with every seed and return the study: `ablatio train -m` of the command line.

        study = ablatio.run_study("norm=layernorm,rmsnorm", "seed=1,2,3", name="norms")
        print(study.verdict)

    overrides  settings as on the command line, one a string; several values, with commas, are an axis
    name, out  of the study's folder, OUT/NAME; by default the time, in `runs`
    quiet      print nothing

    The runs are processes of their own, so a study takes the parts of installed plugins, and refuses those that this
    session defined.  The same call again does what is not done yet.  Raises ConfigError with everything that is wrong
    before the first run, SweepFailed when some runs failed (the others are done, and `open_study` opens them), and
    Preempted when the study was interrupted.
    """
    words = words_of("run_study", overrides, name, out)
    with executing():
        return StudyFolder(adapter.sweep(words, quiet=quiet))


def open_study(folder: "str | Path") -> "StudyFolder":
    """Open the study in a folder, finished or not; a folder of single runs counts as one.

    Raises UserError if the folder contains no runs.
    """
    from ablatio.report.read.table import read_table

    study = StudyFolder(Path(folder).expanduser())
    read_table([study.folder])  # says at once where there is no study
    return study


def resume_study(folder: "str | Path", *overrides: str, quiet: bool = False) -> "StudyFolder":
    """Execute the unfinished runs of a study: `ablatio resume STUDY` on the command line.

    overrides  how runs are executed: `workers=2`, `timeout=3600`; `retry=failed` repeats failed runs
    """
    from ablatio.sweep.study import STUDY

    folder, words = Path(folder).expanduser(), words_of("resume_study", overrides)
    if not (folder / STUDY).exists():
        raise UserError(f"{folder} is no study: it has no {STUDY}\n    try: ablatio.resume_run, for a single run")
    with executing():
        return StudyFolder(adapter.resume_sweep(folder, words, quiet=quiet))


@dataclass(frozen=True, slots=True)
class StudyVerdict:
    """What a study says; print it for the text.

    headline   the answer in one sentence
    sentences  one for each pair of arms, the largest resolved difference first: `kind` is "resolved", "not resolved" or
               "no statement", and `pair` has the numbers
    notes      what holds for all of them
    """

    headline: str
    sentences: "tuple[Sentence, ...]"
    notes: tuple[str, ...]

    @property
    def resolved(self) -> "list[Sentence]":
        """The sentences on differences that are more than chance."""
        return [sentence for sentence in self.sentences if sentence.kind == "resolved"]

    def __str__(self) -> str:
        texts = [sentence.text for sentence in self.sentences]
        return "\n".join([*([] if texts == [self.headline] else [self.headline]), *texts, *self.notes])


class StudyFolder:
    """One study.  Its files are read anew at each question, so a study that still runs says what it says so far.

    folder  where it lies

    `runs`, `arms` and `comparisons` are pandas frames.  They, `verdict` and `report` compare by the score that the task
    is judged by, and with the study's own baseline, unless they are asked otherwise:

    metric      another score: "val/loss"
    baseline    another arm: "norm=rmsnorm position=rope"
    correction  of p for many comparisons: "holm", "dunnett", "bh" (Benjamini-Hochberg), "none"
    interval    "t" (paired), "bootstrap" (BCa, for 20 seeds or more), "permutation"
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        found = self.findings()
        states = ", ".join(f"{count} {state}" for state, count in found.table.count().items())
        return f"<ablatio study {self.folder}: {len(found.rows)} arms, runs: {states}>"

    def findings(
        self,
        metric: str | None = None,
        baseline: str | None = None,
        correction: "Correction" = "holm",
        interval: "Method" = "t",
    ) -> "Findings":
        """All that the report is written from, as objects."""
        return find_in([self.folder], metric, baseline, correction, interval)

    def runs(self) -> "DataFrame":
        """One line a run: the settings of its arm, its seed and state, its scores, its size, its cost, its folder."""
        table = self.findings().table
        return frame("runs()", [_run_row(run) for run in table.runs])

    def arms(self, metric: str | None = None, baseline: str | None = None) -> "DataFrame":
        """One line an arm, the best first: how many seeds, mean and standard deviation, parameters, seconds a run."""
        found = self.findings(metric, baseline)
        rows = [
            {
                "arm": row.arm.name, "baseline": row.arm.baseline, "n": row.n, "mean": row.mean, "sd": row.sd,
                "rank": row.rank, "parameters": row.arm.size("parameters"), "seconds": row.arm.cost("seconds"),
            }
            for row in found.rows
        ]  # fmt: skip
        return frame("arms()", rows).rename(columns={"mean": found.metric})

    def comparisons(
        self,
        metric: str | None = None,
        baseline: str | None = None,
        correction: "Correction" = "holm",
        interval: "Method" = "t",
    ) -> "DataFrame":
        """One line a pair of arms: the difference a - b over shared seeds, its 95 % interval, p and what that says."""
        found = self.findings(metric, baseline, correction, interval)
        said = {(s.pair.a, s.pair.b): s for s in _verdict_of(found).sentences}
        pairs = found.comparison.pairs if found.comparison else ()
        rows = [_pair_row(pair, said.get((pair.a, pair.b))) for pair in pairs]
        return frame("comparisons()", rows, PAIR_COLUMNS)

    @property
    def verdict(self) -> StudyVerdict:
        """What the study says so far, in words and as objects."""
        return _verdict_of(self.findings())

    def report(
        self,
        out: "str | Path | None" = None,
        *,
        metric: str | None = None,
        baseline: str | None = None,
        correction: "Correction" = "holm",
        interval: "Method" = "t",
    ) -> Path:
        """Write the page, and report.md, results.csv and costs.csv beside it; the path of the page.

        out  the folder for them; by default FOLDER/report
        """
        found = self.findings(metric, baseline, correction, interval)
        return write_report(found, [self.folder], None if out is None else Path(out).expanduser()) / "report.html"


PAIR_COLUMNS = ("a", "b", "difference", "low", "high", "p", "n", "better", "kind", "more_seeds", "sentence")


def _run_row(run: "Run") -> dict[str, Any]:
    stage = {"stage": run.stage} if run.stage else {}
    kept: Mapping[str, Any] = {**run.scores, **run.size, **run.cost}
    what = {"seed": run.seed, "role": run.role, "state": run.state, "why": run.why}
    return {**run.arm, **stage, **what, **kept, "run": run.id, "folder": str(run.folder)}


def _pair_row(pair: "Pair", sentence: "Sentence | None") -> dict[str, Any]:
    d = pair.difference
    known = {"difference": d.mean, "low": d.low, "high": d.high, "p": pair.p}
    numbers = {key: None if math.isnan(value) else value for key, value in known.items()}
    said = {"kind": sentence.kind, "sentence": sentence.text} if sentence else {}
    return {"a": pair.a, "b": pair.b, **numbers, "n": d.n, "better": pair.better, "more_seeds": pair.more_seeds, **said}


def _verdict_of(found: "Findings") -> StudyVerdict:
    words = found.verdicts.get("en")
    if words is None:
        return StudyVerdict("No run is done yet: there is nothing to compare.", (), ())
    return StudyVerdict(words.headline, words.sentences, words.notes)
