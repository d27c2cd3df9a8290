"""One file of parts, named by the user for one command: `parts=./my_parts.py`.

Naming the file executes it, as `python my_parts.py` would.  So only the user may name it: on the command line, or by
`ablatio.load_parts` in Python.  No config, YAML file, run folder, study or plugin can.  A run that uses a part of the
file records the file's sha256 and keeps a copy, which is never executed unless the user names it: a later command on
that run needs `parts=FILE` again, and the file must be the same.
"""

import hashlib
import importlib.abc
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.errors import EnvironmentFault, UserError
from ablatio.registry import discovery, rules
from ablatio.registry.part_spec import PartFault, faulty_parts
from ablatio.registry.registry import (
    REGISTRIES,
    ContractError,
    Distribution,
    PartSpec,
    others_unchanged,
    provided_by,
    transaction,
)
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word

KEY = "parts"  # parts=FILE
MODULE = "ablatio_parts_file"
COPY = "parts.py"  # in a run folder and in a study folder
RECORD = "parts_file"  # key of manifest.json and of study.json
SHOWN = 12  # digits of a sha256 in messages


@dataclass(frozen=True, slots=True)
class PartsFile:
    """A file of parts: its path as the user wrote it, and its text, which does not change with the file."""

    path: str
    text: str

    @classmethod
    def read(cls, path: str) -> "PartsFile":
        """Read the file at `path`; UserError if it is not a Python file."""
        place = Path(path).expanduser()
        if place.suffix != ".py":
            raise UserError(f"{KEY}={path}: expected one Python file\n    try: {KEY}=my_parts.py")
        try:
            return cls(str(place), place.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UserError(
                f"{KEY}={path} cannot be read: {why}\n    try: ls {shlex.quote(str(place.parent))}"
            ) from None

    @property
    def sha256(self) -> str:
        """Digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def distribution(self) -> Distribution:
        """Distribution of the file's parts in lists, errors and manifests: its name and the start of its digest."""
        return Distribution(Path(self.path).name, self.sha256[:SHOWN])

    @property
    def parts(self) -> list[PartSpec]:
        """Its parts, as far as they are registered."""
        entries = (entry for registry in REGISTRIES.values() for entry in registry.entries.values())
        return [entry for entry in entries if entry.distribution == self.distribution]

    def record(self, used: Iterable[PartSpec]) -> dict[str, Any]:
        """Entry of a manifest: path, digest, name of the copy, and the digest of each part that is used."""
        digests = {f"{entry.kind}/{entry.name}": entry.digest for entry in used}
        return {"file": self.path, "sha256": self.sha256, "copy": COPY, "parts": digests}


class PartsNeeded(UserError):
    """A run or study needs its file of parts.

    what  what is missing or differs
    path  a file that fits
    """

    def __init__(self, what: str, path: str) -> None:
        super().__init__(f"{what}\n    try: ablatio.load_parts({path!r}), and the same call")
        self.what, self.path = what, path

    def for_command(self, words: Sequence[str]) -> str:
        """The message with the command that works."""
        return f"{self.what}\n    try: {shlex.join(['ablatio', *words, f'{KEY}={self.path}'])}"


class _Loader(importlib.abc.SourceLoader):
    """Compiles the text that was read and hashed, whatever the file holds by now; no cached bytecode is used."""

    def __init__(self, file: PartsFile) -> None:
        self.file = file
        self.held = file.text  # for `source_digest`

    def get_filename(self, fullname: str) -> str:
        """Path of the file, for tracebacks."""
        return self.file.path

    def get_data(self, path: str | bytes) -> bytes:
        """The text of the file."""
        return self.file.text.encode()


_current: PartsFile | None = None
_rules_before: list[rules.Rule] = []


def current() -> PartsFile | None:
    """The file whose parts are registered now; None if none was named."""
    return _current


def load(file: PartsFile) -> None:
    """Execute the file and register its parts; UserError if that fails.  Another file that was named is forgotten."""
    global _current
    # Path and text: an edited file is another one, and is executed again.
    if _current == file:
        return
    unload()
    discovery.load()
    _rules_before[:] = rules.RULES
    kinds = set(REGISTRIES)
    try:
        ours = file.distribution
        with transaction(), others_unchanged(ours), provided_by(ours), faulty_parts() as faults:
            _execute(file)
            if faults:
                raise ContractError(_told(faults))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file may raise anything, including SystemExit
        rules.RULES[:] = _rules_before
        sys.modules.pop(MODULE, None)
        why = _reason(error, file)
        hint = "" if "try: " in why else f"\n    try: ablatio check {KEY}={shell_word(file.path)}, when it is mended"
        raise UserError(f"{KEY}={file.path} cannot be used: {why}{hint}") from None
    _current = file
    if not file.parts and kinds == set(REGISTRIES):
        unload()
        raise UserError(
            f'{KEY}={file.path} registers no part; expected a class or function below `@norms.register("my_norm")`\n'
            "    try: ablatio show norm=rmsnorm, for what a part of a kind receives"
        )


def _told(faults: Sequence[PartFault]) -> str:
    """All faulty parts of a file, and the command that shows the contract of the first one's kind."""
    lines = [f"{f.kind}={f.name} ({f.place.removeprefix(f'{MODULE}.')}): {f.reason}" for f in faults]
    text = lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} parts do not keep their contract", *lines])
    return text.replace("\n", "\n    ") + f"\n    try: ablatio show {faults[0].kind} --author"


def _execute(file: PartsFile) -> None:
    spec = importlib.util.spec_from_loader(MODULE, _Loader(file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it is executed, as an import does: dataclasses and type hints look up their module there.
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)


def _reason(error: BaseException, file: PartsFile) -> str:
    """Return the message of the error and the line of the file at which it was raised."""
    if isinstance(error, ContractError):
        return str(error)
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file.path]
    number = error.lineno if isinstance(error, SyntaxError) else (frames or [None])[-1]
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {what}" + (f" ({file.path}, line {number})" if number else "")


def unload() -> None:
    """Forget the parts, kinds and rules of the file."""
    global _current
    if _current is None:
        return
    ours = _current.distribution
    for kind, registry in list(REGISTRIES.items()):
        if registry.distribution == ours:
            del REGISTRIES[kind]
        for name in [name for name, entry in registry.entries.items() if entry.distribution == ours]:
            del registry.entries[name]
            registry._targets.pop(name, None)
    rules.RULES[:] = _rules_before
    sys.modules.pop(MODULE, None)
    _current = None


@contextmanager
def loaded(file: PartsFile | None) -> Iterator[None]:
    """Context manager: the parts of the file are registered inside; without a file nothing changes."""
    if file is None:
        yield
        return
    load(file)
    try:
        yield
    finally:
        unload()


def words(record: Any = None) -> list[str]:
    """The setting that names a file, for commands in messages and reports: [`parts=my_parts.py`], or nothing.

    record  of a run or study; None: the current file
    """
    if record is None:
        return [f"{KEY}={_current.path}"] if _current else []
    path = record.get("file") if isinstance(record, Mapping) else None
    return [f"{KEY}={path}"] if isinstance(path, str) else []


def record_for(entries: Iterable[PartSpec]) -> dict[str, Any]:
    """The record of the current file if it provides some of these parts; else empty."""
    if _current is None:
        return {}
    used = [entry for entry in entries if entry.distribution == _current.distribution]
    return _current.record(used) if used else {}


def recorded_in(manifest: Path) -> Any:
    """The record of a file of parts in manifest.json or recipe.json; None if there is none that can be read."""
    with suppress(OSError, EnvironmentFault):
        return read_object(manifest).get(RECORD)
    return None


def refuse_another(record: Any, folder: Path) -> None:
    """Raise PartsNeeded unless the file that was named is the one recorded by the run or study in `folder`.

    record  as it stands in a file that others may have changed: what does not look like a record asks for nothing

    A plugin that provides the recorded parts with the same source is as good as the file.
    """
    path, sha256 = (record.get("file"), record.get("sha256")) if isinstance(record, Mapping) else (None, None)
    if not isinstance(path, str) or not isinstance(sha256, str) or _is_installed(record.get("parts")):
        return
    if _current is not None and _current.sha256 == sha256:
        return
    made = f"{folder} uses parts of the file {path} (sha256 {sha256[:SHOWN]})"
    # The user's own file first: it may be imported from, and edited; the copy is the last resort.
    fitting = [place for place in (path, str(folder / COPY)) if _digest_of(place) == sha256]
    if _current is None:
        what = f"{made}, and only you may name code that is to be executed"
    else:
        what = f"{made}, and {_current.path} is another file or another version of it ({_current.sha256[:SHOWN]})"
    if fitting and fitting[0] != path:
        what += f"\n    {fitting[0]} is the copy that was kept; read it before you execute it"
    elif not fitting:
        what += f"\n    neither {path} nor the copy {folder / COPY} is that file now"
    raise PartsNeeded(what, fitting[0] if fitting else "FILE.py")


def _is_installed(parts: Any) -> bool:
    """True if plugins provide all recorded parts with the same source."""
    if not isinstance(parts, Mapping) or not parts:
        return False
    discovery.load()
    for name, digest in parts.items():
        kind, _, option = str(name).partition("/")
        entry = REGISTRIES[kind].entries.get(option) if kind in REGISTRIES else None
        ours = _current is not None and entry is not None and entry.distribution == _current.distribution
        if entry is None or ours or entry.digest != digest or not digest:
            return False
    return True


def _digest_of(path: str) -> str:
    with suppress(OSError, ValueError):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return ""
