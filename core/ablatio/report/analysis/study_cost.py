"""The cost of a study, failed runs included: runs by state, computing time, tokens, FLOPs and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ablatio.report.numbers import short
from ablatio.report.read.table import Table
from ablatio.report.words import Language, say
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


def cost_sentences(table: Table, language: Language = "en") -> Iterator[str]:
    """`15 runs planned: 13 done, 2 failed`; `1.2 h of computing, 3.07 M tokens, 4.1 TFLOP, 3.2 GB at most`."""
    cost, states, comma = study_cost(table), table.count(), say("comma", language)
    trials = say("trials among", language, n=cost["trials"]) if cost["trials"] else ""
    refused = say("refused before", language, n=len(table.refused)) if table.refused else ""
    counts = comma.join(counted(states, language))
    key = "runs planned" if counts else "no run planned"
    yield say(key, language, n=cost["runs"], trials=trials, counts=counts, refused=refused)
    amounts = {
        "computing": duration(cost["seconds"]) if cost["seconds"] else "",
        "tokens spent": short(cost["tokens"], 3) if cost["tokens"] else "",
        "flop spent": short(cost["flops"], 3) if cost["flops"] else "",
        "most memory": short(cost["memory"], 3) if cost["memory"] else "",
    }
    if spent := [say(key, language, x=x) for key, x in amounts.items() if x]:
        yield say("spent", language, spent=comma.join(spent))


def counted(states: Mapping[str, int], language: Language = "en") -> list[str]:
    """`13 done`, `2 failed`: numbers of runs by state."""
    return [say("amount of state", language, n=n, state=say(f"state {state}", language)) for state, n in states.items()]
