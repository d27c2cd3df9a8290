"""YAML files of the user that belong to no distribution: in local folders, or named by their path.

    ./conf/GROUP/NAME.yaml, ./sweeps/NAME.yaml   of the working directory
    DIR/GROUP/NAME.yaml, DIR/sweeps/NAME.yaml    DIR: --config-dir, or the folders in ABLATIO_CONFIG_DIR
    experiment=./my.yaml  +sweep=./study.yaml  preset=./x.yaml  recipe=./r.yaml

They pass the checks of a plugin's YAML: they build no objects, set nothing of Hydra, name no code, belong to a group
that exists, and take no name that an installed distribution has.  A file of a local folder may take such a name if it
says so in its head: `# @replaces ablatio`.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ablatio.config.words import key_of, value_of
from ablatio.config.yaml_file import File, header, read_yaml
from ablatio.errors import EnvironmentFault, UserError, did_you_mean
from ablatio.registry.registry import REGISTRIES, ContractError, Distribution
from ablatio.storage.paths import shell_word, shipped

VARIABLE = "ABLATIO_CONFIG_DIR"
SWEEP, SWEEPS = "sweep", "sweeps"
SUFFIXES = (".yaml", ".yml")
REPLACES = "replaces"
PACKAGES = {"experiment": "_global_", SWEEP: "_global_", "size": "model"}  # where the settings of a group belong

Found = dict[str, dict[str, File]]
_named: dict[str, dict[str, Path]] = {}  # group -> path as typed -> absolute path
_copies: ContextVar[Mapping[tuple[str, str], Path]] = ContextVar("copies", default=MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of a local folder that cannot be used, and why."""

    group: str
    name: str
    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} is left out: {self.why}"


def folders() -> list[tuple[Path, str]]:
    """Local folders of options, each with the name that is shown; UserError for a named folder that is missing."""
    named = [Path(text).expanduser() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    if missing := [folder for folder in named if not folder.is_dir()]:
        raise UserError(f"{VARIABLE} or --config-dir names {missing[0]}, and there is no such folder\n"
                        f"    try: ls {shell_word(missing[0].parent)}")  # fmt: skip
    found = [(folder.resolve(), str(folder)) for folder in named]
    with suppress(OSError):  # the working directory may be gone
        here = Path.cwd()
        found += [(here / name, f"./{name}") for name in ("conf", SWEEPS) if (here / name).is_dir()]
    ours = [shipped(name).resolve() for name in ("conf", SWEEPS)]
    return [(folder, shown) for folder, shown in found if folder.resolve() not in ours]


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(group, file) of each YAML file in a folder; the group of a file beside the groups is empty."""
    if folder.name == SWEEPS:
        yield from ((SWEEP, path) for path in _yaml_in(folder))
        return
    yield from (("", path) for path in _yaml_in(folder))
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from ((SWEEP if inner.name == SWEEPS else inner.name, path) for path in _yaml_in(inner))


def _yaml_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def add_to(found: Found) -> list[LeftOut]:
    """Add the local files to the groups in `found`; returns those that are left out."""
    groups, refused = {*found, *REGISTRIES}, list[LeftOut]()
    for folder, shown in folders():
        try:
            inside = list(_files_in(folder))
        except OSError as error:
            refused.append(LeftOut("", "", shown, str(error.strerror)))
            continue
        for group, path in inside:
            file = File(group, path.stem, path, Distribution(shown, ""), local=True)
            old = found.get(group, {}).get(file.name)
            with suppress(OSError):
                if old is not None and old.path.read_bytes() == path.read_bytes():
                    continue  # a copy of what is there, as in a checkout beside an installation
            if shown == "./conf" and group not in groups and not did_you_mean(group, groups):
                continue  # ./conf is a usual name: these are the files of another program
            if why := _problem(file, groups, old):
                refused.append(LeftOut(group, file.name, f"{shown}/{path.relative_to(folder)}", why))
            else:
                found.setdefault(group, {})[file.name] = file
    for group, paths in _named.items():
        for text, path in paths.items():
            if not path.is_file():
                continue
            found.setdefault(group, {})[text] = File(group, _plain_name(path), path, Distribution(text, ""), local=True)
    for (group, option), path in _copies.get().items():
        found.setdefault(group, {})[option] = File(group, _first_name(path), path, Distribution(option, ""), local=True)
    return refused


@contextmanager
def standing_for(copies: Mapping[tuple[str, str], Path]) -> Iterator[None]:
    """Context in which files stand for local ones: {(group, option): copy}."""
    token = _copies.set(copies)
    try:
        yield
    finally:
        _copies.reset(token)


def _first_name(copy: Path) -> str:
    """Name of the file that was copied as `1-NAME.yaml`."""
    return copy.stem.partition("-")[2] or copy.stem


def _problem(file: File, groups: set[str], old: File | None) -> str:
    """Why a file of a local folder cannot be used; empty if it can."""
    if not file.group:
        return "it is in no group; a conf folder holds GROUP/OPTION.yaml, such as experiment/mine.yaml"
    if file.group not in groups:
        known = ", ".join(sorted({*groups} - {*REGISTRIES}))
        return f"there is no group `{file.group}`{did_you_mean(file.group, groups)}; groups of files: {known}"
    if file.group in REGISTRIES and file.name in REGISTRIES[file.group].entries:
        owner = REGISTRIES[file.group].entries[file.name].distribution
        return f"{file.group}={file.name} is a part of {owner}; rename the file"
    try:
        check(file)
    except (OSError, EnvironmentFault, ContractError) as error:
        return str(error).splitlines()[0].removeprefix(f"{file.path}: ")
    if old is not None and (old.local or header(file.path).get(REPLACES) != old.distribution.name):
        head = "" if old.local else f", or say so in its first line: # @{REPLACES} {old.distribution.name}"
        return f"{file.group}={file.name} exists already, from {old.distribution}; rename the file{head}"
    return ""


def check(file: File) -> None:
    """Raise ContractError or DamagedFile for a file whose content may not stand in a config."""
    _check(file.path, file.path.stat().st_mtime_ns)


@functools.cache
def _check(path: Path, changed: int) -> None:
    data = read_yaml(path)
    defaults = data.get("defaults")
    for item in defaults if isinstance(defaults, list) else []:
        for key in item if isinstance(item, Mapping) else [item]:
            if str(key).removeprefix("override").strip().lstrip("/").split("/")[0] == "hydra":
                raise ContractError(f"{path}: `{key}` changes a setting of Hydra; only the command line may")


def replacements(found: Mapping[str, Mapping[str, File]]) -> list[str]:
    """A sentence for each local file that stands in place of an option of the same name."""
    return [
        f"{group}={name} is {file.origin}, which replaces that of {whose}"
        for group, options in found.items()
        for name, file in options.items()
        if file.local and file.name == name and (whose := header(file.path).get(REPLACES))
    ]


def beside(name: str) -> str:
    """Path of the YAML file NAME.yaml of the working directory, as a setting names it; "" if there is none."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    return next((f"./{name}{suffix}" for suffix in SUFFIXES if plain and Path(f"{name}{suffix}").is_file()), "")


def may_name(overrides: Sequence[str]) -> bool:
    """True if an override may name a file by its path; False needs no look at the disk."""
    return any(_paths(value_of(text)) for text in overrides)


def take_in(overrides: Sequence[str], groups: Mapping[str, Any]) -> bool:
    """Make options of the files that overrides name by their path: `preset=./x.yaml`, `+sweep=./study.yaml`.

    Returns True if a file became an option by this call.  Raises UserError for a path without a file, and for a file
    that may not stand in a config.
    """
    new = False
    for text in overrides:
        group = key_of(text)
        if text.startswith("~") or (group not in groups and group not in REGISTRIES):
            continue
        for word in _paths(value_of(text)):
            if (group, word) in _copies.get():
                continue
            known, path = _named.setdefault(group, {}), _file_at(group, word, groups)
            new |= known.get(word) != path
            known[word] = path
    return new


def _paths(value: str) -> list[str]:
    """The words of a value that are paths of YAML files."""
    quoted = value[:1] in ("'", '"') and value.endswith(value[:1]) and len(value) > 1
    words = [value[1:-1]] if quoted else re.split(r"[,()\[\]\s'\"]+", value)
    return [word for word in words if word.endswith(SUFFIXES) or ("/" in word and "${" not in word)]


def _file_at(group: str, text: str, groups: Mapping[str, Any]) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        stem = Path(text).stem
        known = stem in groups.get(group, {})
        hint = f"{group}={stem}" if known and "/" not in text else f"ls {shell_word(path.parent)}"
        raise UserError(f"{group}={text}: there is no file {path}\n    try: {hint}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{group}={text}: expected a YAML file, NAME.yaml\n    try: ablatio list {group}")
    if found := re.search(r"[,=\s'\"\[\]{}()$:\\]", text):
        raise UserError(
            f"{group}={text}: a path on the command line may not contain {found[0]!r}\n    try: another file name, or "
            f"the folder conf/{group}, whose files are chosen by name"
        )
    try:
        _check(path, path.stat().st_mtime_ns)
    except ContractError as error:
        raise UserError(
            f"{group}={text}: {str(error).removeprefix(f'{path}: ')}\n    try: ablatio list {group}"
        ) from None
    return path


def _plain_name(path: Path) -> str:
    """Name of an option that may name a folder: `my study.yaml` gives `my_study`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)
