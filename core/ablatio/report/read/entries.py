"""List the runs, studies and recipes of a folder with state, score and size on disk, and remove them."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatio.errors import AblatioError, DamagedFile, EnvironmentFault, UserError
from ablatio.report.read.single_runs import flatten
from ablatio.report.read.stages import RECIPE
from ablatio.storage.atomic_write import explained
from ablatio.storage.folder_lock import owner_of
from ablatio.storage.json_files import read_object_if_any
from ablatio.sweep.ledger import Ledger, alive
from ablatio.sweep.lock import LOCK as STUDY_LOCK
from ablatio.sweep.study import LEDGER, STUDY
from ablatio.training.run_folder import LOCK as RUN_LOCK

FIELDS = ("name", "kind", "state", "score", "size", "time")  # what can be sorted by, besides settings
MARKS = {STUDY: "study", RECIPE: "recipe", "config.json": "run"}  # file that makes a folder an entry -> its kind


@dataclass(frozen=True, slots=True)
class Entry:
    """One run, study or recipe on disk.

    state     done, diverged, failed, running, interrupted; of a study `5 of 8 done` unless all are; damaged if a file
              that says what it is cannot be read
    score     of a run, with its name; None if it has none
    size      bytes on disk; time: of its first file, in seconds since 1970
    settings  of a run, flat: {"norm.name": "rmsnorm"}; of a study what its command line asked for
    refers    folders that its config names, such as the run that it starts from
    """

    folder: Path
    kind: str
    state: str
    score: float | None = None
    score_name: str = ""
    size: int = 0
    time: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)
    refers: Sequence[Path] = ()

    @property
    def name(self) -> str:
        """Path as it was found."""
        return str(self.folder)

    @property
    def running(self) -> bool:
        """True if a process works in the folder."""
        return "running" in self.state.split()

    def value(self, key: str) -> Any:
        """A field, or a setting: `norm`, `optimizer.lr`; None if there is none."""
        if key in FIELDS:
            return getattr(self, key)
        return self.settings.get(key, self.settings.get(f"{key}.name"))

    def fits(self, condition: str) -> bool:
        """True for a condition `KEY=PATTERN` with a value that fits it, or a pattern of the name alone."""
        key, equals, pattern = condition.partition("=")
        if not equals:
            return fnmatch.fnmatch(self.folder.name, f"*{condition}*")
        value = self.value(key)
        # A study is asked for in lists, norm=rmsnorm,layernorm, and fits if one of the values does.
        words = {str(value), *(str(value).split(",") if self.kind != "run" else ())}
        return value is not None and any(word == pattern or fnmatch.fnmatch(word, pattern) for word in words)


def entries_in(roots: Sequence[Path]) -> list[Entry]:
    """Return the entries in these folders, and those that the folders are themselves.

    Raises UserError if a folder does not exist.
    """
    found: dict[Path, Entry] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(
                f"there is no folder {root}\n    try: ablatio runs FOLDER, with the folder of your runs (out=)"
            )
        for folder in [root] if _kind(root) else _below(root):
            found.setdefault(folder.resolve(), _read(folder))
    return list(found.values())


def is_at_work(folder: Path) -> bool:
    """True if a process works in a study, a recipe, a run, or a folder of them."""
    places = [folder] if _kind(folder) or not folder.is_dir() else _below(folder)
    return any(owner_of(place / RUN_LOCK) or "running" in _state(place, {}).split() for place in places)


def _state(folder: Path, summary: Mapping[str, Any]) -> str:
    """State of an entry; `summary`: of a run."""
    kind = _kind(folder)
    if kind == "run":
        return _run_state(folder, summary)
    return _study_state(folder) if kind == "study" else _recipe_state(folder)


def _below(root: Path, depth: int = 2) -> Iterator[Path]:
    """Entries below a folder that is none itself; links are not followed."""
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink()):
        if _kind(folder):
            yield folder
        elif depth > 1:
            with suppress(PermissionError):
                yield from _below(folder, depth - 1)


def _kind(folder: Path) -> str:
    return next((kind for mark, kind in MARKS.items() if (folder / mark).is_file()), "")


def _read(folder: Path) -> Entry:
    kind = _kind(folder)
    mark = next(mark for mark, k in MARKS.items() if k == kind)
    told, damaged = _object(folder / mark)
    summary: dict[str, Any] = {}
    if kind == "run":
        summary, also = _object(folder / "summary.json")
        damaged = damaged or also or _object(folder / "manifest.json")[1]
    state = _state(folder, summary)
    # That a process works here matters more: nobody may remove its folder.
    if damaged and "running" not in state.split():
        state = "damaged"
    size, time = _disk(folder), (folder / mark).stat().st_mtime
    if kind == "run":
        main = summary.get("score")
        name = str(main.get("name", "")) if isinstance(main, Mapping) else "val/loss"
        score = summary.get(name)
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        # Nothing of a damaged run is believed.
        known = float(summary[name]) if is_number and state != "damaged" else None
        settings = flatten(told)
        # Whatever setting it stands in: model.path, reference.path, or one of a plugin.
        refers = [Path(v).expanduser() for v in settings.values() if os.sep in v and Path(v).expanduser().is_dir()]
        return Entry(folder, kind, state, known, name if known is not None else "", size, time, settings, refers)
    words = [str(o) for o in told.get("overrides", [])] if isinstance(told.get("overrides"), list) else []
    settings = dict(word.lstrip("+~").split("=", 1) for word in words if "=" in word)
    return Entry(folder, kind, state, size=size, time=time, settings=settings)


def _object(path: Path) -> tuple[dict[str, Any], bool]:
    """The object in a file, empty if there is none or it cannot be read; True if it cannot because it is damaged."""
    try:
        return read_object_if_any(path), False
    except DamagedFile:
        return {}, True
    except EnvironmentFault:  # not permitted to read it, which says nothing of what it holds
        return {}, False


def _run_state(folder: Path, summary: Mapping[str, Any]) -> str:
    with suppress(AblatioError):
        if owner_of(folder / RUN_LOCK):
            return "running"
    status = str(summary.get("status", ""))
    if status in ("done", "diverged", "failed"):
        return status
    return "failed" if (folder / "error.txt").exists() else "interrupted"


def _study_state(folder: Path) -> str:
    try:
        jobs = [e for e in Ledger(folder / LEDGER).read().values() if e.state != "replaced"]
    except AblatioError:
        return "damaged"
    states = [e.state for e in jobs]
    told = {"failed": states.count("failed")}
    told["running"] = sum(e.state in ("claimed", "running") and alive(e) is not False for e in jobs)
    done = sum(e.state == "done" for e in jobs)
    with suppress(AblatioError):
        # Between two jobs no run is alive, but the engine is, and would start the next one in a removed folder.
        if not told["running"] and owner_of(folder / STUDY_LOCK):
            told["running"] = 1
    if jobs and done == len(jobs):
        return "done"
    return ", ".join([f"{done} of {len(jobs)} done", *(f"{n} {word}" for word, n in told.items() if n)])


def _recipe_state(folder: Path) -> str:
    stages = sorted(p.parent for p in folder.glob("*/config.json"))
    if any(owner_of(stage / RUN_LOCK) for stage in stages):
        return "running"
    done = sum(_object(stage / "summary.json")[0].get("status") == "done" for stage in stages)
    return "done" if stages and done == len(stages) else f"{done} of {len(stages)} done"


def _disk(folder: Path) -> int:
    """Bytes of all files; links count as nothing."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118  (ten thousand files: no objects)
    return total


def ordered(entries: Sequence[Entry], key: str, reverse: bool = False) -> list[Entry]:
    """Sort by a field or a setting: numbers by size, the rest as text; entries without a value come last.

    Raises UserError if no entry has a value under this key.
    """
    known = [e for e in entries if e.value(key) not in (None, "")]
    if entries and not known and key not in FIELDS:
        raise UserError(f"no run has `{key}`\n    try: --sort {', --sort '.join(FIELDS)}, or a setting such as norm")

    def place(entry: Entry) -> tuple[int, float, str]:
        value = entry.value(key)
        with suppress(TypeError, ValueError):
            return 0, float(value), ""
        return 1, 0.0, str(value)

    down = reverse != (key == "time")  # the newest first
    return [*sorted(known, key=place, reverse=down), *(e for e in entries if e not in known)]


def refuse_removal(entries: Sequence[Entry], every: Sequence[Entry]) -> None:
    """Raise UserError if one of the entries is in use: by a process, or by an entry that stays and starts from it."""
    gone = {e.folder.resolve() for e in entries}
    for entry in entries:
        if entry.running:
            raise UserError(f"{entry.name} is running, so nothing was removed\n    try: --filter state=done")
        if Path.cwd().resolve().is_relative_to(entry.folder.resolve()):
            raise UserError(f"{entry.name} is the working directory, or holds it\n    try: cd somewhere else first")
    for other in every:
        for place in other.refers:
            if other.folder.resolve() not in gone and any(place.resolve().is_relative_to(g) for g in gone):
                raise UserError(
                    f"{other.name} starts from {place}, so nothing was removed\n    try: remove {other.name} as well"
                )


def remove(entry: Entry) -> None:
    """Delete the folder of an entry.  Raises EnvironmentFault if that fails."""
    with explained("remove", entry.folder):
        shutil.rmtree(entry.folder)
