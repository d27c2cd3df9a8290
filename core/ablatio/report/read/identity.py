"""Check that the files of a run folder belong together, and to the run that the study and the ledger name.

A finished run is believed only if nothing contradicts it.  What is recorded depends on the version that wrote the run:

    ledger        digest of each result file when the run ended
    job           config of the run, compared with config.json
    manifest      id of the run, as in the summary; digest of config.json; seeds, number of parameters
    metrics.csv   scores of the last step, as in the summary
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablatio.config.kind_lists import volatile
from ablatio.errors import AblatioError
from ablatio.registry import renamed
from ablatio.report.read.curves import Curves
from ablatio.report.read.notes import note
from ablatio.storage.json_files import NUMBER, check_types, fits
from ablatio.sweep.ledger import RESULTS, digests_in
from ablatio.sweep.study import RUNS

MAIN = {"name": "val/loss", "better": "lower"}  # score of a run of the first version, whose summary names none
ANYWHERE = ("out", "name", "trainer")  # settings that may differ between a job and its run
LARGEST = 1e100  # of a score; the squares of larger ones are not finite
SUMMARY = {
    "status": str, "score": dict, "before": (dict, type(None)), "after": (dict, type(None)), "steps": int,
    "samples": list, "error": str, "run": str,
    **dict.fromkeys(("tokens", "seconds", "train_flops", "parameters", "memory", "trainable_parameters",
                     "non_embedding_parameters"), (*NUMBER, type(None))),
}  # fmt: skip
MANIFEST = {"run": str, "versions": dict, "code": dict, "data": dict, "seeds": dict, "size": dict, "machine": dict}


def contradictions(
    folder: Path,
    job: Mapping[str, Any],
    recorded: str,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    curves: Curves,
) -> Iterator[str]:
    """Yield a sentence for each fact about a finished run that does not fit the others.

    job       config of the job in its study; empty for a single run
    recorded  digests of the result files in the ledger; empty if it has none
    """
    yield from _changed_files(folder, recorded)
    if job and (key := _other_setting(job, config)):
        yield note("other setting", path=folder / "config.json", key=key)
    yield from _foreign_manifest(folder, config, manifest, summary)
    yield from _bad_scores(folder, summary)
    yield from _other_scores(folder, config, summary, curves)


def wrong_types(data: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> str:
    """Describe the first value of another type than expected; empty if there is none."""
    try:
        check_types(data, expected, str(path))
    except AblatioError as error:
        return str(error)
    return ""


def main_score(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name and direction of the main score of a summary."""
    found = summary.get("score")
    return found if isinstance(found, Mapping) else MAIN


def _changed_files(folder: Path, recorded: str) -> Iterator[str]:
    for name, digest in digests_in(recorded).items():
        if name in RESULTS and digest_of(folder / name) != digest:
            yield note("changed file", path=folder / name)


def digest_of(path: Path) -> str:
    """First digits of the SHA-256 of a file, as in the ledger; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _other_setting(job: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """First setting in which the config of a run differs from that of its job."""
    apart = (*ANYWHERE, *volatile())
    # A study may be older than its last runs, and use names that were changed since.
    mine, theirs = (renamed.current_config(node)[0] for node in (job, config))
    for key in dict.fromkeys((*mine, *theirs)):
        if key not in apart and (found := _difference(mine.get(key), theirs.get(key), key)):
            return found
    return ""


def _difference(mine: Any, theirs: Any, where: str) -> str:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        keys = dict.fromkeys((*mine, *theirs))
        return next((found for k in keys if (found := _difference(mine.get(k), theirs.get(k), f"{where}.{k}"))), "")
    return "" if mine == theirs or _same_run(mine, theirs) else where


def _same_run(mine: Any, theirs: Any) -> bool:
    """True if a job refers to another run of its study, as `runs/ID`, and the run has that one's folder."""
    return isinstance(mine, str) and isinstance(theirs, str) and mine.startswith(f"{RUNS}/") and theirs.endswith(mine)


def _foreign_manifest(
    folder: Path, config: Mapping[str, Any], manifest: Mapping[str, Any], summary: Mapping[str, Any]
) -> Iterator[str]:
    path = folder / "manifest.json"
    # Runs of older versions have no id in their summary; what is absent contradicts nothing.
    if {"run"} <= manifest.keys() & summary.keys() and manifest["run"] != summary["run"]:
        yield note("other run", summary=folder / "summary.json", manifest=path, a=summary["run"], b=manifest["run"])
    if (digest := manifest.get("config")) and digest_of(folder / "config.json") != str(digest)[:16]:
        yield note("other config", path=folder / "config.json", manifest=path)
    size, parameters = manifest.get("size"), summary.get("parameters")
    if isinstance(size, Mapping) and parameters is not None and size.get("parameters", parameters) != parameters:
        summary_file = folder / "summary.json"
        yield note("other size", manifest=path, summary=summary_file, a=size["parameters"], b=parameters)
    own, seeds = config.get("seeds"), manifest.get("seeds")
    for name, seed in seeds.items() if isinstance(seeds, Mapping) else ():
        asked = own.get(name) if isinstance(own, Mapping) else None
        asked = config.get("seed") if asked is None else asked
        if isinstance(asked, int) and seed != asked:
            yield note("other seed", manifest=path, config=folder / "config.json", name=name, a=seed, b=asked)


def _bad_scores(folder: Path, summary: Mapping[str, Any]) -> Iterator[str]:
    main, path = main_score(summary), folder / "summary.json"
    name, better = main.get("name"), main.get("better")
    if not isinstance(name, str) or better not in ("lower", "higher"):
        yield note("no direction", path=path, name=repr(name), better=repr(better))
        return
    values = {f"`{name}`": summary.get(name)} | ({"`score.value`": main["value"]} if "value" in main else {})
    values |= {f"`{key}`": value for key, value in summary.items() if key.startswith("val/") and value is not None}
    for what, value in values.items():
        if not is_score(value):
            yield note("no number", path=path, what=what, value=repr(str(value)[:40]))
            return
    if main.get("value", summary[name]) != summary[name]:
        yield note("two scores", path=path, name=name, a=main["value"], b=summary[name])


def is_score(value: Any) -> bool:
    """True for a finite number whose square is finite, too."""
    return fits(value, NUMBER) and abs(value) < LARGEST  # False for NaN


def _other_scores(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], curves: Curves) -> Iterator[str]:
    path, steps = folder / "summary.json", summary.get("steps")
    train = config.get("train")
    asked = train.get("steps") if isinstance(train, Mapping) else None
    asked = 0 if summary.get("scored_only") is True else asked  # its task trains nothing
    early = isinstance(summary.get("stopped"), Mapping)  # a stabilizer ended the run before its last step
    if isinstance(asked, int) and isinstance(steps, int) and (steps > asked if early else steps != asked):
        yield note("other steps", path=path, config=folder / "config.json", steps=steps, asked=asked)
    for name, (at, values) in curves.items():
        if name.startswith("val/") and at[-1] == steps:
            said: Any = summary.get(name)
            if not (is_score(said) and math.isclose(said, values[-1], rel_tol=1e-6, abs_tol=1e-12)):
                metrics = folder / "metrics.csv"
                yield note("other curve", path=path, metrics=metrics, name=name, a=said, b=values[-1], steps=steps)
