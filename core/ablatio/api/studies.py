"""Studies: `ablatio.run_study`, and a study folder as an object."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.api import adapter, minutes
from ablatio.api.frames import frame
from ablatio.api.reports import find_in, write_report
from ablatio.api.session import executing
from ablatio.api.settings import words_of
from ablatio.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ablatio.api.evaluations import RunEvaluation
    from ablatio.report.analysis.findings import Findings
    from ablatio.report.analysis.verdict import Sentence
    from ablatio.report.read.run import Run
    from ablatio.report.statistics import Correction, Method, Pair
    from ablatio.report.words import Language


def run_study(
    *overrides: str, name: str | None = None, out: "str | Path | None" = None, quiet: bool = False
) -> "StudyFolder":
    """Run every arm with every seed and return the study, like `ablatio train -m` on the command line.

        study = ablatio.run_study("norm=layernorm,rmsnorm", "seed=1,2,3", name="norms")
        print(study.verdict)

    overrides  settings as on the command line, one per string; several values separated by commas are an axis
    name, out  of the study folder, OUT/NAME; by default the time, in `runs`
    quiet      print nothing

    The runs are processes of their own, so parts must come from installed plugins or from a file (`load_parts`); parts
    defined in this session are refused.  Repeating the call runs what is not done yet.  Raises ConfigError with all
    problems before the first run, SweepFailed if some runs failed (the others are done, and `open_study` opens them),
    and Preempted if the study was interrupted.
    """
    words = words_of("run_study", overrides, name, out)
    minutes.refuse_in_study(words)
    with executing():
        return StudyFolder(adapter.sweep(words, quiet=quiet))


def open_study(folder: "str | Path") -> "StudyFolder":
    """Open a study folder, finished or not; a folder of single runs counts as a study.

    Raises UserError if the folder holds no runs.
    """
    from ablatio.report.read.table import read_table

    study = StudyFolder(Path(folder).expanduser())
    read_table([study.folder])  # raises at once if there is no study
    return study


def resume_study(folder: "str | Path", *overrides: str, quiet: bool = False) -> "StudyFolder":
    """Run what is not done of a study, like `ablatio resume STUDY` on the command line.

    overrides  how it is executed: `workers=2`, `timeout=3600`; `retry=failed` repeats failed runs
    """
    from ablatio.sweep.study import STUDY

    folder, words = Path(folder).expanduser(), words_of("resume_study", overrides)
    if not (folder / STUDY).exists():
        raise UserError(f"{folder} is no study: it has no {STUDY}\n    try: ablatio.resume_run, for a single run")
    with executing():
        return StudyFolder(adapter.resume_sweep(folder, words, quiet=quiet))


@dataclass(frozen=True, slots=True)
class StudyVerdict:
    """Conclusions of a study; print it for the text.

    headline   the main result in one sentence
    sentences  one per pair of arms, largest resolved difference first: `kind` is "resolved", "not resolved", "equal"
               (the same numbers) or "not testable", and `pair` has the numbers
    notes      remarks that apply to all of them
    outcomes   one sentence per arm of which runs diverged
    """

    headline: str
    sentences: "tuple[Sentence, ...]"
    notes: tuple[str, ...]
    outcomes: tuple[str, ...] = ()

    @property
    def resolved(self) -> "list[Sentence]":
        """Sentences about statistically resolved differences."""
        return [sentence for sentence in self.sentences if sentence.kind == "resolved"]

    def __str__(self) -> str:
        told = (*self.outcomes, *(sentence.text for sentence in self.sentences))
        # The headline may already be one of the sentences.
        return "\n".join([self.headline, *(text for text in told if text not in self.headline), *self.notes])


class StudyFolder:
    """One study.  Its files are read again at each call, so a running study gives its results so far.

    folder  path of the study folder

    `runs`, `arms` and `comparisons` are pandas data frames.  These, `verdict` and `report` compare by the main score of
    the task and with the study's own baseline, unless set otherwise:

    metric      another score: "val/loss"
    baseline    another arm: "norm=rmsnorm position=rope"
    correction  of p for multiple comparisons: "holm", "dunnett", "bh" (Benjamini-Hochberg), "none"
    interval    "t" (paired), "moderated" (few seeds), "skewed" (skewed scores of unequal spread), "bootstrap" (BCa, for
                20 seeds or more), "permutation"
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
        """Return the analysis on which the report is based, as objects."""
        return find_in([self.folder], metric, baseline, correction, interval)

    def runs(self) -> "DataFrame":
        """Data frame with one line per run: settings of its arm, seed, state, scores, size, cost, folder."""
        table = self.findings().table
        return frame("runs()", [_run_row(run) for run in table.runs])

    def arms(self, metric: str | None = None, baseline: str | None = None) -> "DataFrame":
        """Data frame with one line per arm, best first: seeds, mean, sd, parameters, seconds."""
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
        """Data frame with one line per pair of arms.

        Columns: difference a - b over shared seeds, its 95 % interval, p, the conclusion as kind and sentence, the
        smallest difference that this study would have resolved, and the seeds per arm of a new study planned for the
        difference that was found.
        """
        found = self.findings(metric, baseline, correction, interval)
        sentences = {(s.pair.a, s.pair.b): s for s in _verdict_of(found).sentences}
        pairs = found.comparison.pairs if found.comparison else ()
        rows = [_pair_row(pair, sentences.get((pair.a, pair.b))) for pair in pairs]
        return frame("comparisons()", rows, PAIR_COLUMNS)

    def evaluate(
        self, *overrides: str, code: bool = False, tell: "Callable[[RunEvaluation], None]" = lambda one: None
    ) -> "list[RunEvaluation]":
        """Measure every finished run by evaluations; `runs`, `arms` and `report` then have them as scores.

            study.evaluate("eval=[dyck,addition]")
            study.report(metric="eval/dyck/likelihood_choice")

        overrides  settings of `eval`, `metric`, `decode` and `prompt`, as of `RunFolder.measure`
        code       True if metrics may run programs that the model wrote
        tell       called with the result of each run, when it is there

        The runs are measured one after the other in this process.  What a run was asked before is not asked again, so
        an interrupted call can be repeated.  A run that cannot be measured does not stop the others.  Raises
        UserError if no run is done, or for what the first run refuses if all refuse it; ConfigError for settings that
        cannot be used.
        """
        from ablatio.api.evaluations import evaluate_runs
        from ablatio.report.read.table import read_table

        return evaluate_runs(self.folder, read_table([self.folder]).counted, overrides, code=code, tell=tell)

    @property
    def verdict(self) -> StudyVerdict:
        """Conclusions so far, as text and objects."""
        return _verdict_of(self.findings())

    def report(
        self,
        out: "str | Path | None" = None,
        *,
        metric: str | None = None,
        baseline: str | None = None,
        correction: "Correction" = "holm",
        interval: "Method" = "t",
        language: "Language" = "en",
    ) -> Path:
        """Write report.html with report.md, results.csv and costs.csv beside it; return the path of report.html.

        out       folder of the files; by default FOLDER/report
        language  of report.md: en or zh
        """
        found = self.findings(metric, baseline, correction, interval)
        place = None if out is None else Path(out).expanduser()
        return write_report(found, [self.folder], place, language=language) / "report.html"


PAIR_COLUMNS = (
    "a", "b", "difference", "low", "high", "p", "n", "better", "kind", "detectable", "planned_seeds", "sentence",
)  # fmt: skip


def _run_row(run: "Run") -> dict[str, Any]:
    stage = {"stage": run.stage} if run.stage else {}
    kept: Mapping[str, Any] = {**run.scores, **run.size, **run.cost}
    what = {"seed": run.seed, "role": run.role, "state": run.state, "why": run.why}
    return {**run.arm, **stage, **what, **kept, "run": run.id, "folder": str(run.folder)}


def _pair_row(pair: "Pair", sentence: "Sentence | None") -> dict[str, Any]:
    d = pair.difference
    known = {"difference": d.mean, "low": d.low, "high": d.high, "p": pair.p}
    numbers = {key: None if math.isnan(value) else value for key, value in known.items()}
    verdict = {"kind": sentence.kind, "sentence": sentence.text} if sentence else {}
    return {
        "a": pair.a,
        "b": pair.b,
        **numbers,
        "n": d.n,
        "better": pair.better,
        "detectable": None if math.isnan(pair.detectable) else pair.detectable,
        "planned_seeds": pair.planned_seeds,
        **verdict,
    }


def _verdict_of(found: "Findings") -> StudyVerdict:
    words = found.verdicts.get("en")
    if words is None:
        return StudyVerdict("No run is done yet: there is nothing to compare.", (), ())
    notes = (*found.rules.get("en", ()), *words.notes)
    return StudyVerdict(words.headline, words.sentences, notes, words.outcomes)
