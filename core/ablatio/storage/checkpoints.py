"""Checkpoints, committed atomically and verified before use.

    step-00000100.model.safetensors   the weights alone, readable by any tool
    step-00000100.state.safetensors   all other tensors: optimizer, random generators, averages
    step-00000100.json                the manifest: sha256 of both files and of itself, all other state as plain JSON

Renaming the manifest into place commits the step; without a manifest there is no checkpoint. Importing this module
does not load torch: the command line needs the writer (`write_json` and the like) before it needs tensors.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.errors import DamagedFile, Diverged, EnvironmentFault, UserError
from ablatio.storage.atomic_write import (
    check_json,
    digest,
    explained,
    make_folder,
    remove_stray,
    write_bytes,
    write_json,
    write_pieces,
    write_text,
)
from ablatio.storage.manifest import FORMAT, read_manifest, readable, seal, sealed, understood
from ablatio.storage.safetensors_io import check_tensor, count_non_finite, read_tensors, suspicious, tensor_pieces
from ablatio.storage.state_json import decode_state, encode_state, refuse_builders

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "check_json",
    "decode_state",
    "digest",
    "encode_state",
    "make_folder",
    "refuse_builders",
    "remove_stray",
    "write_bytes",
    "write_json",
    "write_text",
]

_MANIFEST = re.compile(r"step-(\d{8,})\.json")
_DATA = re.compile(r"step-(\d{8,})(\.r1)?\.(?:model|state)\.safetensors")
_PARTS = ("model", "state")


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One verified checkpoint, tensors on the CPU; `skipped`: a sentence for each newer one that could not be used."""

    step: int
    model: dict[str, "Tensor"]
    state: dict[str, Any]
    info: dict[str, Any]
    skipped: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run, in one folder with a single writer; the newest `keep` valid ones are kept.

    `run` names the run: a checkpoint of another run is refused on reading and never removed. While a step is being
    saved, the disk holds `keep` + 1 checkpoints.
    """

    def __init__(self, folder: str | Path, keep: int = 2, run: str | None = None) -> None:
        if keep < 1:
            raise UserError(f"keep={keep}: at least one checkpoint must stay; set keep=1 or more.")
        self.folder, self.keep, self.run = Path(folder), keep, run
        self._verified: set[tuple[str, ...]] = set()  # `_mark`s of the steps that this object has written or verified

    def steps(self) -> list[int]:
        """Return the committed steps, ascending, without opening their files."""
        if not self.folder.exists():
            return []
        with explained("read", self.folder):
            found = [int(match[1]) for path in self.folder.iterdir() if (match := _MANIFEST.fullmatch(path.name))]
        # step-000000100.json has the number of a step, but it is not the name that this class writes.
        return sorted(step for step in set(found) if self._manifest_path(step).exists())

    def latest(self) -> int | None:
        """Return the newest committed step, or None, without opening its files."""
        return max(self.steps(), default=None)

    def seal(self, step: int) -> str:
        """Return the digest of a step's manifest, which holds those of its files; DamagedFile if it is damaged."""
        return read_manifest(self._manifest_path(step), step)[1]

    def save(
        self, step: int, model: Mapping[str, "Tensor"], state: Mapping[str, Any], info: Mapping[str, Any] | None = None
    ) -> Path:
        """Commit a step, remove checkpoints older than the newest `keep` valid ones, and return the manifest's path.

        Raises Diverged, before anything is written, if `model` or an optimizer in `state` (a key that starts with
        "optim") holds a non-finite value; UserError for values that cannot be saved; EnvironmentFault if the files
        cannot be written.
        """
        info = dict(info or {})
        # Whatever can be refused is refused here: a value that cannot be saved must not cost the previous checkpoint.
        structure, tensors = encode_state(dict(state))
        self._check(step, model, tensors, info)
        make_folder(self.folder)
        self._refuse_rewind(step)
        self._prune(step)  # a previous writer may have been killed after its commit, before it removed old steps
        revision = self._free_revision(step)
        body = {"format": FORMAT, "step": step, "run": self.run, "revision": revision, "info": info}
        try:
            files = {}
            for part, content in zip(_PARTS, (model, tensors), strict=True):
                pieces, names = tensor_pieces(content)
                path = self._data_path(step, revision, part)
                # One sync of the folder after the last data file is enough: only the manifest commits.
                files[part] = {**write_pieces(path, pieces, sync_folder=part == _PARTS[-1]), "names": names}
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (body | {"files": files}).items()]
            text = "{" + ",\n".join([*lines, f'"state": {json.dumps(structure)}']) + "}"
            write_bytes(self._manifest_path(step), sealed(text.encode()))
        except BaseException:
            with suppress(Exception):  # an error of the clean-up must not hide the first one
                self._remove_leftovers()
            raise
        # What was hashed on its way to the disk need not be read again to be counted as valid.
        self._verified.add(self._mark(step, revision, seal(text.encode())))
        self._prune(step)
        return self._manifest_path(step)

    def load(self, step: int | None = None) -> Checkpoint:
        """Read the newest valid checkpoint, or that of `step`; all digests are verified before anything is returned.

        Raises UserError if there is no checkpoint, DamagedFile if none is valid or that of `step` is not.
        """
        found = self.steps()
        if not found:
            raise UserError(
                f"There is no checkpoint in {self.folder}.\n    try: the folder of a run that has saved one"
            )
        if step is not None and step not in found:
            there = ", ".join(map(str, found))
            raise UserError(f"{self.folder} has no checkpoint of step {step}.\n    try: one of its steps: {there}")
        skipped: list[str] = []
        # A step that was asked for by number is never replaced by an older one in silence.
        for candidate in reversed(found) if step is None else [step]:
            try:
                return replace(self._read(candidate), skipped=tuple(skipped))
            except DamagedFile as error:
                skipped.append(str(error))
        others = [other for other in found if other != step] if step is not None else []
        listed = "".join(f"\n  {sentence}" for sentence in skipped)
        advice = f"one of the other steps: {', '.join(map(str, others))}" if others else "start the run again"
        raise DamagedFile(f"No usable checkpoint in {self.folder}:{listed}\n    try: {advice}")

    def forget(self, after: int) -> None:
        """Remove this run's steps later than `after`; the run was rewound and repeats them."""
        for step in self.steps():
            if step > after and self._removable(step):
                with explained("remove", self._manifest_path(step)):
                    self._manifest_path(step).unlink(missing_ok=True)
        self._remove_leftovers()

    def _manifest_path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.json"

    def _data_path(self, step: int, revision: int, part: str) -> Path:
        return self.folder / f"step-{step:08d}{'.r1' if revision else ''}.{part}.safetensors"

    def _check(self, step: int, model: Mapping[str, Any], tensors: Mapping[str, "Tensor"], info: Any) -> None:
        """Raise for everything that cannot be saved, before anything is written."""
        if type(step) is not int or step < 0:
            raise UserError(f"step={step!r}: a step is a whole number from 0.")
        check_json(info, "info")
        refuse_builders(info, "info")
        for name, tensor in model.items():
            check_tensor(tensor, name)
        # Other state may hold infinities rightly, such as a best loss that starts at inf.
        optimizer = {name: tensor for name, tensor in tensors.items() if name.startswith("state.optim")}
        for name, tensor in suspicious({**model, **optimizer}).items():
            if bad := count_non_finite(tensor):
                raise Diverged(
                    f"{name} at step {step}: {bad} of {tensor.numel()} values are NaN or infinite; not saved.\n"
                    f"    try: resume with a lower optimizer.lr or a stabilizer (`ablatio list stabilizer`)"
                )

    def _is_own(self, manifest: Mapping[str, Any]) -> bool:
        return self.run is None or manifest["run"] == self.run

    def _read(self, step: int) -> Checkpoint:
        manifest, known = read_manifest(self._manifest_path(step), step)
        path = self._manifest_path(step)
        with understood(path):
            if not self._is_own(manifest):
                came = f"belongs to run {manifest['run']!r}, not to run {self.run!r}"
                raise DamagedFile(f"{path.name} {came}: it was copied from elsewhere.")
            tensors = []
            for part in _PARTS:
                data = self._data_path(step, manifest["revision"], part)
                with readable(data):
                    tensors.append(read_tensors(data, manifest["files"][part]))
            self._verified.add(self._mark(step, manifest["revision"], known))
            refuse_builders(manifest["info"], "info")
            return Checkpoint(step, tensors[0], decode_state(manifest["state"], tensors[1]), manifest["info"])

    def _mark(self, step: int, revision: int, known: str) -> tuple[str, ...]:
        """A value that changes if the manifest or a data file is rewritten; an unchanged step is not hashed again."""
        # Hashing all kept checkpoints at each save would read gigabytes; inode, size and time tell a rewritten file.
        stats = [self._data_path(step, revision, part).stat() for part in _PARTS]
        return (known, *(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}" for stat in stats))

    def _is_valid(self, step: int) -> bool:
        """True if `load` would accept this step."""
        try:
            manifest, known = read_manifest(self._manifest_path(step), step)
            path = self._manifest_path(step)
            with understood(path), readable(path):
                mark = self._mark(step, manifest["revision"], known)
                for part in () if mark in self._verified else _PARTS:
                    if digest(self._data_path(step, manifest["revision"], part)) != manifest["files"][part]["sha256"]:
                        return False
                self._verified.add(mark)
                return self._is_own(manifest)
        except EnvironmentFault:  # damaged or unreadable
            return False

    def _free_revision(self, step: int) -> int:
        """The revision (0 or 1) for file names of a step; a step saved again gets the other one.

        The old files stay valid until the new manifest is committed.
        """
        with suppress(DamagedFile):
            return 1 - int(read_manifest(self._manifest_path(step), step)[0]["revision"])
        return 0  # no checkpoint of this step, or a damaged one that may be overwritten

    def _refuse_rewind(self, step: int) -> None:
        for other in reversed(self.steps()):
            # A damaged later step does not count: `load` has skipped it, and the run continues from before.
            if other > step and self._is_valid(other):
                raise UserError(
                    f"{self.folder} already holds the later step {other}; `load` would return it instead of step "
                    f"{step}.\n    try: continue from step {other}, or give this run its own folder"
                )

    def _remove_leftovers(self) -> None:
        """Remove what dead writers left behind: temporary files, and data files that no manifest refers to."""
        remove_stray(self.folder)
        with explained("tidy", self.folder / "step-*"):
            for path in list(self.folder.iterdir()):
                match = _DATA.fullmatch(path.name)
                # Only names of our own pattern: the folder may hold files of the user.
                lost = match and not path.is_dir() and not self._is_referenced(int(match[1]), 1 if match[2] else 0)
                if lost:
                    path.unlink(missing_ok=True)

    def _is_referenced(self, step: int, revision: int) -> bool:
        if not self._manifest_path(step).exists():
            return False
        with suppress(DamagedFile):
            return bool(read_manifest(self._manifest_path(step), step)[0]["revision"] == revision)
        return True  # a damaged manifest may have referred to it

    def _prune(self, newest: int) -> None:
        valid = 0
        # Damaged steps do not count towards `keep`, or they would push out the last one that can be loaded.
        for step in reversed([step for step in self.steps() if step <= newest]):
            if valid < self.keep:
                valid += self._is_valid(step)
            elif self._removable(step):
                with explained("remove", self._manifest_path(step)):
                    # The manifest goes first: data without one are leftovers, a manifest without data would be damage.
                    self._manifest_path(step).unlink(missing_ok=True)
        self._remove_leftovers()

    def _removable(self, step: int) -> bool:
        with suppress(DamagedFile):
            return self._is_own(read_manifest(self._manifest_path(step), step)[0])
        return not self._manifest_path(step).is_dir()
