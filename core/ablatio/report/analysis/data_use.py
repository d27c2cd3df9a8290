"""What the data pipeline of each arm did: documents that filters dropped, rows that a mixture drew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablatio.report.analysis.findings import Findings
from ablatio.report.read.run import inner, object_in

FILTERS = ("arm", "source", "filter", "documents", "kept", "changed", "characters removed", "why")
EXAMPLES = ("arm", "filter", "document", "why", "text")
SOURCES = ("arm", "source", "share", "asked", "standard error", "tokens", "epochs", "bits per byte")
_MOST = 200  # rows of a table
_REASONS = 6  # of a filter


def data_tables(findings: Findings) -> dict[str, list[Sequence[str]]]:
    """Rows of cells for the tables `filters`, `examples` and `sources`, from the first finished run of each arm."""
    found: dict[str, list[Sequence[str]]] = {"filters": [], "examples": [], "sources": []}
    for row in findings.rows:
        run = next((run for run in row.arm.runs if run.done), None)
        if run is None:
            continue
        arm = row.arm.name
        record, _ = object_in(run.folder / "data.json")
        summary, _ = object_in(run.folder / "summary.json")
        for source, stages in inner(record, "filters").items():
            for stage in (s for s in (stages if isinstance(stages, list) else ()) if isinstance(s, Mapping)):
                found["filters"].append(_filter_cells(arm, source, stage))
                found["examples"] += _example_cells(arm, stage)
        sources = inner(summary, "sources")
        found["sources"] += [_source_cells(arm, name, inner(sources, name), summary) for name in sources]
    return {name: rows[:_MOST] for name, rows in found.items()}


def _filter_cells(arm: str, source: str, stage: Mapping[str, Any]) -> Sequence[str]:
    whole = [_whole(stage.get(key)) for key in ("seen", "kept", "changed", "characters_removed")]
    told = [f"{why}: {_whole(n)}" for key in ("reasons", "counts") for why, n in inner(stage, key).items()]
    more = [f"and {len(told) - _REASONS} more"] if len(told) > _REASONS else []
    return (arm, source, str(stage.get("filter", "")), *whole, ", ".join([*told[:_REASONS], *more]))


def _example_cells(arm: str, stage: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    examples = stage.get("examples")
    for example in examples if isinstance(examples, list) else ():
        if isinstance(example, Mapping):
            said = [str(example.get(key, "")) for key in ("id", "why", "text")]
            yield (arm, f"{stage.get('filter', '')}, {example.get('what', '')}", *said)


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
