"""The report as Markdown, for an issue, a README or a wiki."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ablatio.registry.kinds import designs
from ablatio.report.analysis.arms import Arm, matched, rate_is_free, tuned
from ablatio.report.analysis.data_use import data_tables
from ablatio.report.analysis.evaluations import answer_rows, evaluation_rows
from ablatio.report.analysis.findings import Findings, Row
from ablatio.report.analysis.reward_kl_frontier import frontier, in_words
from ablatio.report.analysis.score_quality import quality_caption, quality_cells, score_qualities
from ablatio.report.analysis.search import search_of
from ablatio.report.analysis.study_cost import cost_sentences
from ablatio.report.captions import arms_caption
from ablatio.report.effects_table import effect_rows, effects_caption
from ablatio.report.escape import lines_of, markdown, visible
from ablatio.report.numbers import number, p_cell, short
from ablatio.report.read.provenance import provenance
from ablatio.report.read.stages import stages_of
from ablatio.report.shrunk_table import shrunk_in_words
from ablatio.report.terminal.arm_table import LOST, interval, of_one_run, stage_cells, state_text
from ablatio.report.terminal.trials_table import LISTED, trial_cells
from ablatio.report.words import Language, heads, own, page_words, say
from ablatio.sweep.durations import duration
from ablatio.sweep.study import label_of


def markdown_text(findings: Findings, language: Language = "en") -> str:
    """Return the report: question, verdict and arms, then provenance, failures, and the command of each arm."""
    lines = [f"# {markdown(findings.question or findings.table.study.name)}", ""]
    said, first = [f"- {markdown(sentence)}" for sentence in findings.said(language)], findings.leading
    lines += said[:first]
    if first:
        lines += [*_effects(findings, language), *_title("arms", language)]
    lines += said[first:]
    if stages := stages_of(findings.table.runs):
        head = heads("stage", language)
        lines += ["", *_grid([head, *(stage_cells(stage, {}, language) for stage in stages)], left=len(head))]
    lines += ["", *_grid([_head(findings, language), *(_cells(findings, row, language) for row in findings.rows)])]
    if caption := arms_caption(findings, language):
        lines += ["", markdown(caption)]
    lines += [] if first else _effects(findings, language)
    lines += _trials(findings, language)
    if distance := in_words(frontier(findings), language):
        lines += [*_title("frontier", language), markdown(distance)]
    for title, items in _lists(findings, language).items():
        if told := [f"- {markdown(item)}" for item in items]:
            lines += [*_title(title, language), *told]
    lines += _data(findings, language)
    if scores := quality_cells(score_qualities(findings.table)):
        grid = _grid([heads("signal", language), *scores])
        lines += [*_title("signal", language), *grid, "", markdown(quality_caption(language))]
    if evaluated := [row.cells_in(language) for row in evaluation_rows(findings)]:
        grid = _grid([heads("evaluations", language), *evaluated], left=2)
        lines += [*_title("evaluations", language), *grid, "", markdown(say("evaluations_caption", language))]
    if answered := answer_rows(findings, language):
        lines += [*_title("answers", language), *_grid([(*row, "") for row in answered], left=len(answered[0]))]
    if findings.table.notes:
        notes = [say("note line", language, text=own(note, language)) for note in findings.table.notes]
        lines += ["", *map(markdown, notes)]
    lines += _answers(of_one_run(findings), language)
    lines += _title("title again", language)
    lines += [f"    {visible(row.arm.again)}" for row in findings.rows if row.arm.again]
    return "\n".join(lines) + "\n"


def _title(key: str, language: Language) -> list[str]:
    return ["", f"## {say(key, language)}", ""]


def _lists(findings: Findings, language: Language) -> Mapping[str, Iterable[str]]:
    """Key of the title -> sentences of each section that is a list."""
    return {
        "costs": cost_sentences(findings.table, language),
        "scales": findings.said_of_scales(language),
        "noise": _noise(findings, language),
        "title shrunk": shrunk_in_words(findings, language),
        "title design": _design(findings, language),
        "title refused": (
            say("item", language, name=label_of(r.arm), text=own(r.why, language)) for r in findings.table.refused
        ),
        "title lost": _lost(findings, language),
        "title made of": _made_of(findings, language),
    }


def _grid(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay out a Markdown table.  left: number of text columns at the left; the last column is text, too."""
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    right = len(rows[0]) - left - 1
    return [head, "|" + "---|" * min(left, len(rows[0])) + "---:|" * max(0, right) + "---|" * (right >= 0), *body]


def _effects(findings: Findings, language: Language) -> list[str]:
    """Main effects and interactions with their aliases."""
    found = findings.factors
    if found is None:
        return []
    rows = effect_rows(found, language=language)
    table = _grid([heads("effect", language), *(row.cells for row in rows)], left=2)
    return [*_title("title effects", language), *table, "", markdown(effects_caption(found, language))]


def _data(findings: Findings, language: Language) -> list[str]:
    """The tokenizers, what filters dropped, with examples, and what a mixture drew."""
    lines, found = list[str](), data_tables(findings)
    for key, rows, left in (
        ("tokenizers", found["tokenizers"], 2),
        ("filters", found["filters"], 3),
        ("dropped", found["examples"], 5),
        ("sources", found["sources"], 2),
    ):
        cells = [[own(cell, language) for cell in row] for row in rows]
        lines += [*_title(key, language), *_grid([heads(key, language), *cells], left=left)] if rows else []
    return lines


def _trials(findings: Findings, language: Language) -> list[str]:
    """The best trials of a search, and what is known about its settings."""
    search = search_of(findings)
    if search is None:
        return []
    lines = [*_title("title search", language), *(f"- {markdown(sentence)}" for sentence in search.said(language))]
    rows = trial_cells(search, LISTED, language)
    return [*lines, "", *_grid([(*row, "") for row in rows])] if rows[1:] else lines


def _head(findings: Findings, language: Language) -> tuple[str, ...]:
    return (say("arm", language), "n", findings.metric, *heads("arms", language), "")


def _cells(findings: Findings, row: Row, language: Language) -> tuple[str, ...]:
    arm = row.arm
    memory = arm.cost("memory")
    return (
        arm.name, str(row.n), number(row.mean), number(row.sd), interval(row),
        p_cell(row.pair.p if row.pair else None), short(arm.size("parameters")), short(arm.size("flops_per_token")),
        short(arm.size("tokens")), _rate(findings, arm, language),
        say("of", language, k=arm.count("diverged"), n=len(arm.runs)),
        f"{short(memory)}B" if memory else "", duration(arm.cost("step_seconds")),
        duration(arm.cost("seconds")), _mark(row, language),
    )  # fmt: skip


def _rate(findings: Findings, arm: Arm, language: Language) -> str:
    if arm.rate is None:
        return ""
    rate = f"{arm.rate:g}"
    if rate_is_free(findings.table):
        return rate
    return say("rate tuned" if tuned(findings.table, arm) else "rate untuned", language, rate=rate)


def _mark(row: Row, language: Language) -> str:
    """Remark on an arm: baseline, unfinished runs, or sizes larger than the baseline's."""
    if row.arm.baseline:
        return say("baseline", language)
    larger = [f"{row.residual[key]:+.1%} {say(f'budget {key}', language)}" for key in row.unmatched]
    return say("comma", language).join(filter(None, [state_text(row.arm, language), *larger]))


def _noise(findings: Findings, language: Language) -> Iterator[str]:
    floor, reference = findings.noise, findings.reference
    if floor is None or reference is None:
        return
    figures = {"mean": floor.mean, "sd": floor.sd, "low": floor.low, "high": floor.high}
    told = {name: number(value) for name, value in figures.items()}
    yield say("noise of", language, name=reference.arm.name, n=floor.n, metric=findings.metric, **told)
    seen = findings.smallest_visible()
    asked = [n for n in dict.fromkeys((floor.n, 2 * floor.n, 10, 20)) if n in seen and math.isfinite(seen[n])]
    if asked:
        sizes = [say("size with seeds", language, size=number(seen[n]), n=n) for n in sorted(asked)]
        yield say("visible", language, sizes=say("comma", language).join(sizes))


def _design(findings: Findings, language: Language) -> Iterator[str]:
    study = findings.table.study
    if study.axes:
        axes = "; ".join(f"{a.key} = {', '.join(a.values)}" for a in study.axes)
        yield say("item", language, name=study.design.get("name", designs.usual), text=axes)
    if study.settings:
        yield " ".join(f"{key}={value}" for key, value in study.settings.items())
    for row in findings.rows:
        if how := matched(findings.table, row.arm):
            yield say("item", language, name=row.arm.name, text=own(how, language))
    yield from (say("not told apart", language, alias=alias) for alias in study.aliases)


def _lost(findings: Findings, language: Language) -> Iterator[str]:
    for run in (run for run in findings.table.runs if run.state in LOST):
        why = say("item", language, name=say(f"state {run.state}", language), text=own(run.why, language))
        yield say("item", language, name=f"{run.title} seed={run.seed}", text=why)


def _made_of(findings: Findings, language: Language) -> Iterator[str]:
    """Provenance lines; a value that only some runs share says how many."""
    told, words = provenance(findings.table.runs), page_words(language)
    most = max((n for _, _, n in told), default=0)
    for what, value, n in told:
        text = value if n == most else say("with runs", language, value=value, runs=say("in_runs", language, n=n))
        yield say("item", language, name=words.get(what, what), text=text)


def _answers(samples: Sequence[Mapping[str, str]], language: Language) -> list[str]:
    """Each prompt with its answers before and after training, as indented text without markup."""
    lines, words = _title("title samples", language)[:-1] if samples else [], page_words(language)
    for row in samples:
        for key, value in row.items():
            head = say("item", language, name=words.get(f"sample_{key}", key), text="").strip()
            lines += ["", markdown(head), "", *(f"    {line}" for line in lines_of(value).split("\n"))]
    return lines
