"""Provenance of a study: versions, hashes of code, plugins and data, machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ablatio.report.read.run import Run, inner


def provenance(runs: Sequence[Run]) -> list[list[Any]]:
    """Return rows [what, value, number of runs with it]; several rows for one `what` mean that the runs differ."""
    facts: dict[tuple[str, str], int] = {}

    def tell(what: str, value: Any) -> None:
        if value not in (None, "", {}, []):
            facts[what, str(value)] = facts.get((what, str(value)), 0) + 1

    for run in runs:
        manifest = run.manifest
        for name, version in inner(manifest, "versions").items():
            tell(name, version)
        code = inner(manifest, "code")
        tell("code", code.get("core"))
        for name, digest in inner(code, "plugins").items():
            tell(f"plugin {name}", digest)
        tell("data", run.data)
        tell("tokenizer", run.tokenizer)
        tell("machine", " ".join(f"{k}={v}" for k, v in inner(manifest, "machine").items()))
    order = list(dict.fromkeys(what for what, _ in facts))
    return [[what, value, n] for key in order for (what, value), n in facts.items() if what == key]
