"""Read folders of runs into one table: what was asked, and what became of each run.

A study that is still running is read as it stands.  A damaged or half-written run becomes a row that says so, never
an error: one bad run must not prevent the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablatio.errors import AblatioError, EnvironmentFault, UserError
from ablatio.report.read.notes import note
from ablatio.report.read.run import STATES, Run, read_folder, terms_of
from ablatio.report.read.single_runs import folders_in, runs_of
from ablatio.report.read.stages import RECIPE, of_recipes, ordered
from ablatio.storage.paths import shell_word
from ablatio.sweep.ledger import Entry, Ledger, alive
from ablatio.sweep.study import JOBS, LEDGER, NO_DESIGN, STUDY, Refused, Study, read_job, run_folder


@dataclass(slots=True)
class Table:
    """Runs of one or several folders, in the order of the design.

    notes   what was left out of the comparison, and why; in both languages where it is no error's text (`notes.Note`)
    """

    study: Study
    folders: list[Path]
    runs: list[Run]
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def counted(self) -> list[Run]:
        """Runs that comparisons use."""
        return [r for r in self.runs if r.done and r.role == "run"]

    @property
    def several_data(self) -> bool:
        """True if runs differ in text, tokenizer or budget: then only differences within one folder are comparable."""
        return len({terms_of(r) for r in self.counted}) > 1

    def count(self) -> dict[str, int]:
        """Number of runs per state, for the states that occur."""
        states = [r.state for r in self.runs]
        return {state: states.count(state) for state in STATES if state in states}


def read_table(folders: Sequence[Path]) -> Table:
    """Read all runs of sweeps, runs, or folders of runs.  Raises UserError if a folder holds none."""
    studies: list[Study] = []
    table = Table(Study(""), [Path(f) for f in folders], [])
    plain: list[Path] = []
    recipes = [folder for folder in table.folders if (folder / RECIPE).exists()]
    for folder in table.folders:
        if (folder / STUDY).exists():
            _add_study(table, studies, folder)
        elif folder in recipes:
            continue
        elif found := folders_in(folder):
            plain += found
        else:
            raise UserError(
                f"{folder} holds no runs: neither {STUDY} nor a run folder with config.json is in it\n"
                f"    try: ls {shell_word(folder.parent)}"
            )
    table.runs += runs_of(plain)
    stages, notes = of_recipes(recipes)
    table.runs += stages
    table.notes += notes
    table.study = _merged(studies, table)
    _sort(table)
    return table


def _add_study(table: Table, studies: list[Study], folder: Path) -> None:
    try:
        study = Study.read(folder)
    except EnvironmentFault as error:
        table.notes.append(note("axes from jobs", error=first_line(error)))
        study = Study(folder.name)
    studies.append(study)
    table.notes += [note("same arm", label=label, other=other) for label, other in study.same.items()]
    table.refused += [r for r in study.refused if r not in table.refused]
    known = _ledger(folder, table.notes)
    old = sum(entry.state == "replaced" for entry in known.values())
    if old:
        table.notes.append(note("replaced one", folder=folder) if old == 1 else note("replaced", folder=folder, n=old))
    for path in sorted((folder / JOBS).glob("*.json")):
        if (word := known.get(path.stem)) and word.state == "replaced":
            continue
        try:
            job = read_job(folder, path.stem)
        except (OSError, EnvironmentFault) as error:
            table.runs.append(Run(folder, folder.name, path.stem, {}, 0, "run", "damaged", first_line(error)))
            continue
        # Other entries were written before the run's last files, or by an earlier attempt.
        recorded = word.files if word and word.state in ("done", "paused") else ""
        run = read_folder(run_folder(folder, job.id), folder.name, job, recorded, planned=True)
        table.runs.append(settled(run, word))


def _ledger(folder: Path, notes: list[str]) -> Mapping[str, Entry]:
    """Last entry of each job; empty if there is no ledger (studies of older versions)."""
    ledger = Ledger(folder / LEDGER)
    try:
        found = ledger.read()
    except AblatioError as error:
        notes.append(first_line(error))
        return {}
    if ledger.damaged:
        lines = ", ".join(map(str, ledger.damaged[:10]))
        notes.append(note("damaged lines", path=folder / LEDGER, lines=lines))
    return found


def first_line(error: Exception) -> str:
    """First line of an error, which does not hold its suggestion."""
    return str(error).splitlines()[0]


def settled(run: Run, word: Entry | None) -> Run:
    """Combine a run with its ledger entry: its folder may hold an earlier attempt, or one that was killed."""
    # A study of an older version has no ledger: the folder alone speaks.
    if word is None or run.state == "damaged":
        return run
    if word.state == "done":
        return run if run.done else replace(run, state="damaged", why=note("no result"))
    if word.state == "failed":
        state = "diverged" if word.kind == "diverged" else "failed"
        return replace(run, state=state, why=run.why or word.message or word.kind)
    if word.state in ("claimed", "running"):
        # `is False`: of a process on another machine nothing is known, and it counts as running.
        if alive(word) is False:
            return replace(run, state="preempted", why=note("process gone"))
        return replace(run, state="running", why="") if word.state == "running" else replace(run, state="planned")
    return replace(run, state=word.state)  # planned, paused, preempted


def _merged(studies: Sequence[Study], table: Table) -> Study:
    """Merge several studies: all questions and seeds, axes and baseline of the first study that has them."""
    if len(studies) == 1:
        return studies[0]
    if not studies:
        return Study(" ".join(f.name for f in table.folders), design={"name": NO_DESIGN})
    first = studies[0]
    names = list(dict.fromkeys(s.name for s in studies))
    return Study(
        name=" + ".join(names),
        question=" ".join(dict.fromkeys(s.question for s in studies if s.question)),
        expected=" ".join(dict.fromkeys(s.expected for s in studies if s.expected)),
        design=first.design,
        axes=next((s.axes for s in studies if s.axes), ()),
        seeds=sorted({n for s in studies for n in s.seeds}),
        baseline=next((s.baseline for s in studies if s.baseline is not None), None),
        settings=first.settings,
        overrides=first.overrides,
        parts_file=first.parts_file,
        # Reversed, so that the first study wins where two name the same arm.
        same={k: v for s in reversed(studies) for k, v in s.same.items()},
        tuned={k: v for s in reversed(studies) for k, v in s.tuned.items()},
        matched={k: v for s in reversed(studies) for k, v in s.matched.items()},
        aliases=first.aliases,
        registered=first.registered,
    )


def _sort(table: Table) -> None:
    """Sort by folder, then in the order of the axes' values, then by seed; never by finishing time."""
    places = {a.key: {v: i for i, v in enumerate(a.values)} for a in table.study.axes}
    stages = ordered(table.runs)
    groups = {g: i for i, g in enumerate(dict.fromkeys(r.group for r in table.runs))}

    def where(run: Run) -> tuple[Any, ...]:
        axes = [*places, *sorted(k for k in run.arm if k not in places)]
        # Values that no axis names come last, in the order of their text.
        values = [(places.get(k, {}).get(run.arm.get(k, ""), 1 << 30), run.arm.get(k, "")) for k in axes]
        stage = stages.index(run.stage) if run.role == "stage" else 0
        return groups[run.group], run.role != "run", stage, values, run.seed, run.id

    table.runs.sort(key=where)
