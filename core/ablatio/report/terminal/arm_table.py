"""The table of arms for the terminal and as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablatio.report import rerun_command
from ablatio.report.analysis.arms import COSTS, SIZES, Arm
from ablatio.report.analysis.findings import Findings, Row
from ablatio.report.analysis.search import search_of
from ablatio.report.analysis.study_cost import counted
from ablatio.report.escape import csv_text, terminal
from ablatio.report.numbers import number, p_cell, short
from ablatio.report.read.notes import in_short
from ablatio.report.read.run import Run
from ablatio.report.read.stages import Stage, stages_of
from ablatio.report.read.table import Table
from ablatio.report.terminal.effects_grid import show_effects
from ablatio.report.terminal.trials_table import show_search
from ablatio.report.words import Language, heads, own, say
from ablatio.sweep.durations import duration
from ablatio.sweep.study import label_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

LOST = ("failed", "diverged", "damaged")
SHOWN, SENTENCES = 40, 10  # arms and sentences shown in the terminal; the files hold all


def interval(row: Row) -> str:
    """`+0.0213 [+0.0120, +0.0306]`, the difference to the baseline; `*`: see `Pair.corrected`."""
    d = row.pair.difference if row.pair else None
    if d is None or math.isnan(d.mean):
        return ""
    star = "*" if row.pair and row.pair.corrected else ""
    reach = "" if math.isnan(d.low) else f" [{number(d.low, True)}, {number(d.high, True)}]{star}"
    return number(d.mean, True) + reach


def state_text(arm: Arm, language: Language = "en") -> str:
    """`3 of 5 done, 1 diverged`; empty if all are done."""
    states = [r.state for r in arm.runs]
    if set(states) == {"done"}:
        return ""
    others = counted({s: states.count(s) for s in dict.fromkeys(states) if s != "done"}, language)
    listed = say("comma", language).join(others)
    return say("states", language, done=states.count("done"), n=len(states), others=listed)


def show(console: Console, findings: Findings, language: Language = "en") -> None:
    """Print question, verdict and arms, the best first."""
    if findings.question:
        console.print(f"[bold]{terminal(findings.question)}[/]", highlight=False)
    said, first = findings.said(language), findings.leading
    _say(console, said[:first])
    if first:
        _show_effects(console, findings, language)
    _say(console, said[first:SENTENCES])
    if len(said) > SENTENCES:
        _say(console, [say("more sentences", language, k=len(said) - SENTENCES)])
    console.print()
    if stages := stages_of(findings.table.runs):
        console.print(_stages_grid(stages, {row.arm.label: row.arm.name for row in findings.rows}, language))
        console.print()
    console.print(_grid(findings, console.width, language))
    if len(findings.rows) > SHOWN:
        console.print(say("more arms", language, k=len(findings.rows) - SHOWN), highlight=False)
    if any(row.pair and row.pair.corrected for row in findings.rows):
        starred = say("starred", language, star=say("of one comparison", language))
        console.print(starred, highlight=False, markup=False)
    if not first:
        _show_effects(console, findings, language)
    for sentence in (*lost(findings.table, language), *_remarks(findings.table, language)):
        console.print(terminal(sentence), highlight=False)
    if (search := search_of(findings)) is not None:
        console.print()
        show_search(console, search, language)
    if samples := of_one_run(findings):
        from ablatio.training.run_summary import side_by_side

        console.print()
        names = {key: say(f"sample_{key}", language) for key in ("prompt", "before", "after", "expected", "reward")}
        console.print(side_by_side(samples, names))


def _remarks(table: Table, language: Language) -> Iterator[str]:
    """Arms that were refused, and notes."""
    for refused in table.refused:
        yield say("refused line", language, label=label_of(refused.arm), why=own(refused.why, language))
    for note in table.notes:
        yield say("own note", language, text=own(note, language))


def _say(console: Console, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        console.print(f"  {terminal(sentence)}", highlight=False)


def _show_effects(console: Console, findings: Findings, language: Language) -> None:
    if findings.factors is not None:
        console.print()
        show_effects(console, findings.factors, language)
        console.print()


def lost(table: Table, language: Language = "en") -> Iterator[str]:
    """Yield what went wrong, each reason once, and a note if no run is done."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for run in table.runs:
        if run.state in LOST:
            why = own(in_short(run.why), language)
            reasons.setdefault((run.state, why), []).append(f"{run.title} seed={run.seed}")
    for (state, why), runs in reasons.items():
        which = runs[0] if len(runs) == 1 else say("several runs", language, n=len(runs), first=runs[0])
        told = say("item", language, name=which, text=why)
        yield say("item", language, name=say(f"state {state}", language), text=told)
    if not table.counted:
        yield say("nothing done", language)


def stage_cells(stage: Stage, names: Mapping[str, str], language: Language = "en") -> tuple[str, ...]:
    """Cells of one stage under `heads("stage")`."""
    done = say("of", language, k=stage.done, n=stage.runs)
    arm = names.get(stage.arm, stage.arm) or say("all_arms", language)
    better = say(f"direction {stage.better}", language) if stage.better else ""
    scores = number(stage.before), number(stage.after)
    return stage.name, arm, stage.task, ", ".join(stage.takes), stage.score, *scores, better, done


def _stages_grid(stages: Sequence[Stage], names: Mapping[str, str], language: Language) -> Grid:
    """Table of a recipe's stages; a stage shared by all arms is listed once."""
    from rich.table import Table as Grid

    grid, several = Grid(box=None, pad_edge=False), any(stage.arm for stage in stages)
    plain = {"done"} if all(s.done == s.runs for s in stages) else set()
    plain |= set() if several else {"arm"}
    kept = [i for i, name in enumerate(heads("stage")) if name not in plain]
    for i in kept:
        name, shown = heads("stage")[i], heads("stage", language)[i]
        right, folds = name in ("before", "after"), name in ("arm", "starts from")
        grid.add_column(shown, justify="right" if right else "left", overflow="fold", no_wrap=not folds)
    for stage in stages[:SHOWN]:
        grid.add_row(*(terminal(stage_cells(stage, names, language)[i]) for i in kept))
    return grid


def of_one_run(findings: Findings) -> Sequence[Mapping[str, str]]:
    """Answers of a single run; those of several runs appear on the page only."""
    runs = findings.table.runs
    return runs[0].samples if len(runs) == 1 else ()


def _grid(findings: Findings, width: int, language: Language) -> Grid:
    """Table of arms; narrow terminals omit size and time so that names and numbers stay on one line."""
    compared, wide = any(row.pair for row in findings.rows), width >= 110
    arm_head, sd, difference = (say(key, language) for key in ("arm", "sd", "short difference"))
    head = [arm_head, "n", findings.metric, sd, *([difference, "p"] if compared else [])]
    head += [say("parameters", language), say("seconds", language)] if wide else []
    from rich.table import Table as Grid

    grid = Grid(box=None, pad_edge=False)
    longest = max((len(word) for row in findings.rows for word in row.arm.name.split()), default=0)
    # A wide terminal keeps whole names on a line, a narrow one whole words.
    longest = max((len(row.arm.name) for row in findings.rows), default=0) if width >= 100 else longest
    base = say("baseline", language)
    marks = [base if row.arm.baseline else state_text(row.arm, language) for row in findings.rows]
    widest = max((len(word) for mark in marks for word in mark.split()), default=0)
    least = {arm_head: min(longest, 24 if width >= 100 else 18), "": widest}  # no word of these is cut
    for name in (*head, ""):
        words = name in least
        grid.add_column(terminal(name), justify="left" if words else "right", overflow="fold", no_wrap=not words,
                        min_width=least.get(name))  # fmt: skip
    for row, mark in zip(findings.rows[:SHOWN], marks, strict=False):
        arm = row.arm
        middle = [interval(row), p_cell(row.pair.p if row.pair else None)] if compared else []
        costs = [short(arm.size("parameters")), duration(arm.cost("seconds"))] if wide else []
        cells = (str(row.n), number(row.mean), number(row.sd), *middle, *costs)
        grid.add_row(terminal(arm.name), *cells, terminal(mark))
    return grid


def results_csv(table: Table) -> str:
    """CSV of what each run is and what came out; nothing that depends on the machine or the day."""
    keys = list(dict.fromkeys([a.key for a in table.study.axes] + [k for r in table.runs for k in r.arm]))
    scores = sorted({k for r in table.runs for k in r.scores})
    groups = len({r.group for r in table.runs}) > 1
    stages = any(r.stage for r in table.runs)
    header = [
        *(["folder"] if groups else []),
        *keys,
        *(["stage"] if stages else []),
        "seed",
        "role",
        "state",
        *scores,
        *SIZES,
        "rate",
    ]
    header += ["run", "data", "code", "parts", "command"]

    def line(run: Run) -> list[Any]:
        came = [run.scores.get(k) for k in scores] if run.done else [None] * len(scores)
        # Planned sizes hold for a failed run as well; what it consumed is no result.
        sizes = [run.size.get(k) if run.done or k not in ("tokens", "steps") else None for k in SIZES]
        first = [run.group] if groups else []
        made = [run.id, run.data, run.code, run.parts, rerun_command.line(run.command)]
        return [
            *first,
            *(run.arm.get(k, "") for k in keys),
            *([run.stage] if stages else []),
            run.seed,
            run.role,
            run.state,
            *came,
            *sizes,
            run.rate,
            *made,
        ]

    return csv_text(header, map(line, table.runs))


def costs_csv(table: Table) -> str:
    """CSV of what each run cost on its machine."""
    lines = ([r.id, r.seed, r.state, *(r.cost.get(k) for k in COSTS), r.device, str(r.folder)] for r in table.runs)
    return csv_text(["run", "seed", "state", *COSTS, "device", "folder"], lines)
