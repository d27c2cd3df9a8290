"""Tables of the data of each arm: its tokenizer, documents that filters dropped, rows that a mixture drew."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablatio.data.tokenizer_measures import SECONDS, tokenizer_measures
from ablatio.report.analysis.findings import Findings
from ablatio.report.read.notes import note
from ablatio.report.read.run import Run, inner, object_in

EXAMPLES = ("dropped", "changed")  # what a filter did to a document
COUNTS = ("documents", "tokens", "bytes", "words")
SPLITS = ("train", "validation")
_MOST = 200  # rows of a table
_REASONS = 6  # of a filter


def data_tables(findings: Findings) -> dict[str, list[Sequence[str]]]:
    """Rows of cells under `words.heads` for each table, from the finished runs of each arm.

    tokenizers         if arms have different ones; of the first run
    filters, examples  what filters dropped, with examples; of the first run
    sources            what a mixture drew; means over the runs
    """
    found: dict[str, list[Sequence[str]]] = {"tokenizers": [], "filters": [], "examples": [], "sources": []}
    different = len({run.tokenizer for run in findings.table.counted}) > 1
    for row in findings.rows:
        runs = [run for run in row.arm.runs if run.done]
        if not runs:
            continue
        run, arm = runs[0], row.arm.name
        found["tokenizers"] += [_tokenizer_cells(arm, run)] if different else []
        record, _ = object_in(run.folder / "data.json")
        for source, stages in inner(record, "filters").items():
            for stage in (s for s in (stages if isinstance(stages, list) else ()) if isinstance(s, Mapping)):
                found["filters"].append(_filter_cells(arm, source, stage))
                found["examples"] += _example_cells(arm, stage)
        found["sources"] += _source_rows(arm, runs)
    return {name: rows[:_MOST] for name, rows in found.items()}


def _tokenizer_cells(arm: str, run: Run) -> Sequence[str]:
    name, _, ids = run.tokenizer.rpartition(" ")
    data = inner(run.manifest, "data")
    parts = [inner(inner(data, "sources"), source) for source in inner(data, "sources")] or [data]
    splits = [held for part in parts for split in SPLITS if (held := _split_counts(inner(part, split)))]
    seconds = [part.get(SECONDS) for part in parts]
    # A sum over some of the sources would overstate the speed.
    known = sum(s for s in seconds if isinstance(s, int | float)) if None not in seconds else None
    fit = tokenizer_measures(splits, known)
    train, tokens = _split_counts(inner(parts[0], SPLITS[0])), run.size.get("tokens", 0)
    # Of a mixture the sources have different bytes per token, and how much of each was read is in another table.
    read = tokens * train["bytes"] / train["tokens"] / 1e6 if train.get("tokens") and len(parts) == 1 else None
    return (arm, name, ids, *(_real(x, ".3g") for x in (*fit.values(), read)))


def _split_counts(held: Mapping[str, Any]) -> dict[str, int]:
    """Counts of a split; empty if the manifest does not have them."""
    found = {key: n for key in COUNTS if isinstance(n := held.get(key), int)}
    return found if {"documents", "tokens", "bytes"} <= found.keys() else {}


def _filter_cells(arm: str, source: str, stage: Mapping[str, Any]) -> Sequence[str]:
    whole = [_whole(stage.get(key)) for key in ("seen", "kept", "changed", "characters_removed")]
    told = [f"{why}: {_whole(n)}" for key in ("reasons", "counts") for why, n in inner(stage, key).items()]
    reasons, left = ", ".join(told[:_REASONS]), len(told) - _REASONS
    reasons = note("more reasons", told=reasons, n=left) if left > 0 else reasons
    return (arm, source, str(stage.get("filter", "")), *whole, reasons)


def _example_cells(arm: str, stage: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    examples = stage.get("examples")
    for example in examples if isinstance(examples, list) else ():
        if isinstance(example, Mapping):
            said = [str(example.get(key, "")) for key in ("id", "why", "text")]
            name, what = str(stage.get("filter", "")), str(example.get("what", ""))
            yield (arm, note(what, filter=name) if what in EXAMPLES else f"{name}, {what}", *said)


def _source_rows(arm: str, runs: Sequence[Run]) -> Iterator[Sequence[str]]:
    """A row for each source of the first run: means over the runs that drew from it."""
    summaries = [object_in(runs[0].folder / "summary.json")[0]]
    names = inner(summaries[0], "sources")
    summaries += [object_in(run.folder / "summary.json")[0] for run in runs[1:]] if names else []
    for name in names:
        drew = [(drawn, summary) for summary in summaries if (drawn := inner(inner(summary, "sources"), name))]
        share, asked, tokens, epochs = (
            _mean([drawn.get(key) for drawn, _ in drew]) for key in ("share", "expected", "tokens", "epochs")
        )
        errors = [drawn.get("error") for drawn, _ in drew]
        # Of the mean of n shares that were drawn independently.
        error = None if (mean := _mean([_square(e) for e in errors])) is None else math.sqrt(mean / len(errors))
        bits = [summary.get(f"val/bpb/{name}") for _, summary in drew]
        known = [b for b in bits if isinstance(b, int | float)]
        spread = statistics.stdev(known) if len(known) > 1 and known == bits else None
        yield (
            arm, name, str(len(drew)), _share(share), _share(asked), _share(error), _real(tokens, ",.0f"),
            _real(epochs, ".3g"), _real(_mean(bits), ".4f"), _real(spread, ".4f"),
        )  # fmt: skip


def _mean(values: Sequence[Any]) -> float | None:
    """The mean, or None if one of them is no number."""
    known = [v for v in values if isinstance(v, int | float)]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _square(value: Any) -> float | None:
    return value * value if isinstance(value, int | float) else None


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _real(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else ""


def _share(value: Any) -> str:
    return _real(value, ".2%")
