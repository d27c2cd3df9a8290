"""Tables of the data of each arm: its tokenizer, documents that filters dropped, rows that a mixture drew."""

from __future__ import annotations

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
    """Rows of cells under `words.heads` for each table, from the first finished run of each arm.

    tokenizers                  if arms have different ones
    filters, examples, sources  what filters dropped, with examples; what a mixture drew
    """
    found: dict[str, list[Sequence[str]]] = {"tokenizers": [], "filters": [], "examples": [], "sources": []}
    different = len({run.tokenizer for run in findings.table.counted}) > 1
    for row in findings.rows:
        run = next((run for run in row.arm.runs if run.done), None)
        if run is None:
            continue
        arm = row.arm.name
        found["tokenizers"] += [_tokenizer_cells(arm, run)] if different else []
        record, _ = object_in(run.folder / "data.json")
        summary, _ = object_in(run.folder / "summary.json")
        for source, stages in inner(record, "filters").items():
            for stage in (s for s in (stages if isinstance(stages, list) else ()) if isinstance(s, Mapping)):
                found["filters"].append(_filter_cells(arm, source, stage))
                found["examples"] += _example_cells(arm, stage)
        sources = inner(summary, "sources")
        found["sources"] += [_source_cells(arm, name, inner(sources, name), summary) for name in sources]
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


def _source_cells(arm: str, name: str, drawn: Mapping[str, Any], summary: Mapping[str, Any]) -> Sequence[str]:
    shares = [_share(drawn.get(key)) for key in ("share", "expected", "error")]
    bits = summary.get(f"val/bpb/{name}")
    return (arm, name, *shares, _whole(drawn.get("tokens")), _real(drawn.get("epochs"), ".3g"), _real(bits, ".4f"))


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _real(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else ""


def _share(value: Any) -> str:
    return _real(value, ".2%")
