"""The cost of a study, failed runs included: runs by state, computing time, tokens, FLOPs and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ablatio.report.numbers import short
from ablatio.report.read.table import Table
from ablatio.sweep.durations import duration


def study_cost(table: Table) -> dict[str, Any]:
    """Return runs, trials among them, seconds, flops, tokens, and the largest memory (None if none is recorded)."""
    runs = table.runs
    return {
        "runs": len(runs), "trials": sum(r.role not in ("run", "stage") for r in runs),
        "seconds": sum(r.cost.get("seconds", 0) for r in runs), "flops": sum(r.size.get("flops", 0) for r in runs),
        "tokens": sum(r.size.get("tokens", 0) for r in runs),
        "memory": max((r.cost["memory"] for r in runs if "memory" in r.cost), default=None),
    }  # fmt: skip


def cost_sentences(table: Table) -> Iterator[str]:
    """`15 runs planned: 13 done, 2 failed`; `1.2 h of computing, 3.07 M tokens, 4.1 TFLOP, 3.2 GB at most`."""
    cost, states = study_cost(table), table.count()
    trials = f", {cost['trials']} of them trials" if cost["trials"] else ""
    refused = f"; {len(table.refused)} refused before the start" if table.refused else ""
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    yield f"{cost['runs']} runs planned{trials}: {counts}{refused}" if counts else f"no run planned{refused}"
    spent = [
        f"{duration(cost['seconds'])} of computing" if cost["seconds"] else "",
        f"{short(cost['tokens'], 3)} tokens" if cost["tokens"] else "",
        f"{short(cost['flops'], 3)}FLOP" if cost["flops"] else "",
        f"{short(cost['memory'], 3)}B of memory at most" if cost["memory"] else "",
    ]
    if any(spent):
        yield ", ".join(filter(None, spent)) + ", failed runs included"
