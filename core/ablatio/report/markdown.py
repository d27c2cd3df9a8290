"""The report as Markdown, for an issue, a README or a wiki."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ablatio.registry.kinds import designs
from ablatio.report.analysis.arms import Arm, matched, rate_is_free, tuned
from ablatio.report.analysis.data_use import EXAMPLES, FILTERS, SOURCES, TOKENIZERS, data_tables
from ablatio.report.analysis.evaluations import CAPTION as EVALUATIONS
from ablatio.report.analysis.evaluations import HEAD as EVALUATED
from ablatio.report.analysis.evaluations import answer_rows, evaluation_rows
from ablatio.report.analysis.findings import Findings, Row
from ablatio.report.analysis.reward_kl_frontier import frontier, in_words
from ablatio.report.analysis.score_quality import CAPTION, quality_cells, score_qualities
from ablatio.report.analysis.score_quality import HEAD as QUALITY_HEAD
from ablatio.report.analysis.search import search_of
from ablatio.report.analysis.study_cost import cost_sentences
from ablatio.report.effects_table import HEAD, caption, effect_rows
from ablatio.report.escape import lines_of, markdown, visible
from ablatio.report.numbers import number, p_cell, short
from ablatio.report.read.provenance import provenance
from ablatio.report.read.stages import stages_of
from ablatio.report.shrunk_table import shrunk_in_words
from ablatio.report.terminal.arm_table import (
    LOST,
    STAGES,
    interval,
    of_one_run,
    stage_cells,
    state_text,
)
from ablatio.report.terminal.trials_table import LISTED, trial_cells
from ablatio.sweep.durations import duration
from ablatio.sweep.study import label_of


def markdown_text(findings: Findings) -> str:
    """Return the report: question, verdict and arms, then provenance, failures, and the command of each arm."""
    lines = [f"# {markdown(findings.question or findings.table.study.name)}", ""]
    said, first = [f"- {markdown(sentence)}" for sentence in findings.said()], findings.leading
    lines += said[:first]
    if first:
        lines += [*_effects(findings), "", "## Arms", ""]
    lines += said[first:]
    if stages := stages_of(findings.table.runs):
        lines += ["", *_grid([STAGES, *(stage_cells(stage, {}) for stage in stages)], left=len(STAGES))]
    lines += ["", *_grid([_head(findings), *(_cells(findings, row) for row in findings.rows)])]
    if findings.caption:
        lines += ["", markdown(findings.caption)]
    lines += [] if first else _effects(findings)
    lines += _trials(findings)
    if distance := in_words(frontier(findings)):
        lines += ["", "## Reward against KL", "", markdown(distance)]
    for title, items in (
        ("Cost", cost_sentences(findings.table)),
        ("Across scales", findings.said_of_scales()),
        ("Noise", _noise(findings)),
        ("Shrunk means", shrunk_in_words(findings)),
        ("Design", _design(findings)),
        ("Refused", (f"{label_of(r.arm)}: {r.why}" for r in findings.table.refused)),
        ("Failed and diverged", _lost(findings)),
        ("Made of", _made_of(findings)),
    ):
        if told := [f"- {markdown(item)}" for item in items]:
            lines += ["", f"## {title}", "", *told]
    lines += _data(findings)
    if scores := quality_cells(score_qualities(findings.table)):
        lines += ["", "## Which score separates the arms", "", *_grid([QUALITY_HEAD, *scores]), "", markdown(CAPTION)]
    if evaluated := [row.cells for row in evaluation_rows(findings)]:
        lines += ["", "## Evaluations", "", *_grid([EVALUATED, *evaluated], left=2), "", markdown(EVALUATIONS)]
    if answered := answer_rows(findings):
        lines += ["", "## Answers of the arms", "", *_grid([(*row, "") for row in answered], left=len(answered[0]))]
    if findings.table.notes:
        lines += ["", *(f"Note: {markdown(note)}" for note in findings.table.notes)]
    lines += _answers(of_one_run(findings))
    lines += ["", "## Again", ""]
    lines += [f"    {visible(row.arm.again)}" for row in findings.rows if row.arm.again]
    return "\n".join(lines) + "\n"


def _grid(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay out a Markdown table.  left: number of text columns at the left; the last column is text, too."""
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    right = len(rows[0]) - left - 1
    return [head, "|" + "---|" * min(left, len(rows[0])) + "---:|" * max(0, right) + "---|" * (right >= 0), *body]


def _effects(findings: Findings) -> list[str]:
    """Main effects and interactions with their aliases."""
    found = findings.factors
    if found is None:
        return []
    table = _grid([HEAD, *(row.cells for row in effect_rows(found))], left=2)
    return ["", "## Effects", "", *table, "", markdown(caption(found))]


def _data(findings: Findings) -> list[str]:
    """The tokenizers, what filters dropped, with examples, and what a mixture drew."""
    lines, found = list[str](), data_tables(findings)
    for title, head, rows, left in (
        ("Tokenizers", TOKENIZERS, found["tokenizers"], 2),
        ("What filters dropped", FILTERS, found["filters"], 3),
        ("Examples of dropped and changed documents", EXAMPLES, found["examples"], 5),
        ("Rows of each source", SOURCES, found["sources"], 2),
    ):
        lines += ["", f"## {title}", "", *_grid([head, *rows], left=left)] if rows else []
    return lines


def _trials(findings: Findings) -> list[str]:
    """The best trials of a search, and what is known about its settings."""
    search = search_of(findings)
    if search is None:
        return []
    lines = ["", "## Search", "", *(f"- {markdown(sentence)}" for sentence in search.said())]
    rows = trial_cells(search, LISTED)
    return [*lines, "", *_grid([(*row, "") for row in rows])] if rows[1:] else lines


def _head(findings: Findings) -> tuple[str, ...]:
    against = "difference to the baseline"
    sizes = ("parameters", "FLOPs/token", "tokens", "learning rate", "diverged", "memory", "step", "time")
    return ("arm", "n", findings.metric, "sd", against, "p", *sizes, "")


def _cells(findings: Findings, row: Row) -> tuple[str, ...]:
    arm = row.arm
    memory = arm.cost("memory")
    return (
        arm.name, str(row.n), number(row.mean), number(row.sd), interval(row),
        p_cell(row.pair.p if row.pair else None), short(arm.size("parameters")), short(arm.size("flops_per_token")),
        short(arm.size("tokens")), _rate(findings, arm), f"{arm.count('diverged')} of {len(arm.runs)}",
        f"{short(memory)}B" if memory else "", duration(arm.cost("step_seconds")),
        duration(arm.cost("seconds")), _mark(row),
    )  # fmt: skip


def _rate(findings: Findings, arm: Arm) -> str:
    if arm.rate is None:
        return ""
    free = rate_is_free(findings.table)
    return f"{arm.rate:g}" + ("" if free else " tuned" if tuned(findings.table, arm) else " untuned")


def _mark(row: Row) -> str:
    """Remark on an arm: baseline, unfinished runs, or sizes larger than the baseline's."""
    larger = [f"{row.residual[key]:+.1%} {key.replace('_', ' ')}" for key in row.unmatched]
    return "baseline" if row.arm.baseline else ", ".join(filter(None, [state_text(row.arm), *larger]))


def _noise(findings: Findings) -> Iterator[str]:
    floor, reference = findings.noise, findings.reference
    if floor is None or reference is None:
        return
    yield (
        f"{reference.arm.name} over {floor.n} seeds: {findings.metric} {number(floor.mean)}, "
        f"sd {number(floor.sd)} [{number(floor.low)}, {number(floor.high)}]"
    )
    seen = findings.smallest_visible()
    asked = [n for n in dict.fromkeys((floor.n, 2 * floor.n, 10, 20)) if n in seen and math.isfinite(seen[n])]
    if asked:
        sizes = ", ".join(f"{number(seen[n])} with {n} seeds" for n in sorted(asked))
        yield f"a true difference is found in 4 of 5 studies from {sizes} on"


def _design(findings: Findings) -> Iterator[str]:
    study = findings.table.study
    if study.axes:
        yield f"{study.design.get('name', designs.usual)}: " + "; ".join(
            f"{a.key} = {', '.join(a.values)}" for a in study.axes
        )
    if study.settings:
        yield " ".join(f"{key}={value}" for key, value in study.settings.items())
    yield from (f"{row.arm.name}: {how}" for row in findings.rows if (how := matched(findings.table, row.arm)))
    yield from (f"not told apart: {alias}" for alias in study.aliases)


def _lost(findings: Findings) -> Iterator[str]:
    lost = (run for run in findings.table.runs if run.state in LOST)
    return (f"{run.title} seed={run.seed}: {run.state}: {run.why}" for run in lost)


def _made_of(findings: Findings) -> Iterator[str]:
    """Provenance lines; a value that only some runs share says how many."""
    told = provenance(findings.table.runs)
    most = max((n for _, _, n in told), default=0)
    return (f"{what}: {value}" + (f" ({n} runs)" if n < most else "") for what, value, n in told)


def _answers(samples: Sequence[Mapping[str, str]]) -> list[str]:
    """Each prompt with its answers before and after training, as indented text without markup."""
    lines = ["", "## Answers before and after"] if samples else []
    for row in samples:
        for key, value in row.items():
            lines += ["", f"{markdown(key)}:", "", *(f"    {line}" for line in lines_of(value).split("\n"))]
    return lines
