"""Run folders: create a new one, and read the config of an existing one."""

import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from ablatio.errors import ConfigError, EnvironmentFault, UserError
from ablatio.registry import renamed
from ablatio.registry.parts_file import recorded_in, refuse_another
from ablatio.registry.parts_file import words as parts_words
from ablatio.registry.registry import REGISTRIES, Registry
from ablatio.registry.session_parts import how_to_register, unregistered
from ablatio.storage.atomic_write import explained
from ablatio.storage.checkpoints import make_folder
from ablatio.storage.folder_lock import Owner, own, owner_of
from ablatio.storage.json_files import read_object, read_text
from ablatio.storage.paths import shell_word

CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer.json"
DATA = "data.json"  # what filters and mixture did to the data, where there are any
LOCK = "run.lock"  # held by the process that trains in the folder


def new_folder(config: Mapping[str, Any]) -> Path:
    """Create the run folder OUT/NAME; the default name is the time.

    Raises UserError if a run of that name exists; with the default name a number is appended instead.
    """
    root, name = Path(config["out"]).expanduser(), config["name"]
    if not name:
        return _folder_of_now(make_folder(root))
    folder = root / name
    refuse_link(folder)
    if owner := owner_of(folder / LOCK):
        raise UserError(_in_use(folder, owner))
    if holds_a_run(folder):
        raise UserError(_holds_a_run(folder))
    return make_folder(folder)


def folder_of_other_machine(config: Mapping[str, Any]) -> Path:
    """Return the run folder OUT/NAME, which another machine of the run makes; UserError without a name."""
    if not config["name"]:
        raise UserError(
            f"trainer.nodes={config['trainer']['nodes']}: the machines of a run agree on its folder by name, and there "
            "is no name=\n    try: name=big on each of them"
        )
    folder: Path = Path(config["out"]).expanduser() / config["name"]
    return folder


def _folder_of_now(root: Path) -> Path:
    """Create a folder named after the time; two processes never get the same one."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = root / (stamp if number == 1 else f"{stamp}_{number}")
        with explained("make the folder", folder):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return make_folder(folder)
    raise AssertionError


@contextmanager
def discard_empty(folder: Path) -> Iterator[None]:
    """Remove a new run folder, and the folder that holds it, if an error leaves nothing of the run in it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            found = {p.name for p in folder.iterdir()}
            if found <= {LOCK} and not owner_of(folder / LOCK):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
                folder.parent.rmdir()  # fails, as it should, if it holds anything else
        raise


@contextmanager
def owned(folder: Path, *, resume: bool) -> Iterator[None]:
    """Own the run folder while the context lasts, so that no other process trains in it; a dead owner is replaced.

    Raises UserError if another process owns it, if it or its checkpoints are a link, or if it holds a run already and
    `resume` is not set.
    """
    refuse_link(folder)
    refuse_link(folder / CHECKPOINTS)
    with own(make_folder(folder) / LOCK) as other:
        if other:
            raise UserError(_in_use(folder, other))
        if not resume and holds_a_run(folder):  # another process was faster
            raise UserError(_holds_a_run(folder))
        yield


def holds_a_run(folder: Path) -> bool:
    """True if a run has begun in the folder.  One that was stopped before its first step leaves it free."""
    if not (folder / "config.json").exists():
        return False
    if not (folder / LOCK).exists() or any((folder / CHECKPOINTS).glob("step-*")):
        return True
    try:
        with suppress(FileNotFoundError):
            if read_object(folder / "summary.json").get("steps", 1):
                return True
        with suppress(FileNotFoundError):
            return read_text(folder / "metrics.csv").count("\n") > 2  # header, and the score before the first step
    except EnvironmentFault:
        return True
    return False


def refuse_link(folder: Path) -> None:
    """Raise UserError for a link in place of a folder: files would be written to a place that its name hides."""
    if folder.is_symlink():
        target = folder.resolve()
        raise UserError(
            f"{folder} is a link to {target}; a run writes into folders only\n    try: ls -l {shlex.quote(str(folder))}"
        )


def refuse_living(folder: Path, what: str) -> None:
    """Raise UserError if a process trains in `folder`, whose weights are about to be copied as `what`."""
    if owner := owner_of(folder / LOCK):
        raise UserError(
            f"{what}: the run in {folder} is not finished, {owner} trains it\n    try: the same command when it has "
            f"ended; `{owner.stop}` makes it save a checkpoint and end now"
        )


def _in_use(folder: Path, owner: Owner) -> str:
    return (
        f"{folder} is in use: {owner} trains in it\n    try: another name=, or `{owner.stop}`, which makes it save a "
        f"checkpoint and end, and then {resume_command(folder)}"
    )


def _holds_a_run(folder: Path) -> str:
    return f"{folder} holds a run already\n    try: {resume_command(folder)}, or another name={folder.name}-2"


def resume_command(folder: Path) -> str:
    """Command that continues the run in `folder`, quoted for a shell."""
    return shlex.join(["ablatio", "train", f"resume={folder}", *parts_words()])


def run_id(config: Mapping[str, Any]) -> str:
    """Return the id of a run in its checkpoints: a hash of the non-default settings that affect its numbers.

    Defaults are left out, so that a setting added by a later version does not change the ids of older runs; of a kind
    that takes several options, the list is left out if it is the usual one.
    """
    return _digest(config, [r for r in _lists() if [*(config.get(r.kind) or ())] != r.usual_names])


def earlier_id(config: Mapping[str, Any]) -> str:
    """Return the id that earlier versions gave a run: it saw the knobs in `stabilizer=[...]`, and not the names."""
    return _digest(config, [r for r in _lists() if config.get(r.kind) and not r.usual_names])


def id_in(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the id of the run of this config in `folder`: that of an earlier version if it was begun by one."""
    own, earlier = run_id(config), earlier_id(config)
    if own == earlier:
        return own
    with suppress(FileNotFoundError):
        if read_object(folder / "manifest.json").get("run") == earlier:
            return earlier
    return own


def _lists() -> list[Registry[Any]]:
    """Kinds of which a run may have several options, and which affect its numbers."""
    return [r for r in REGISTRIES.values() if r.multiple and not r.volatile]


def _digest(config: Mapping[str, Any], lists: Sequence[Registry[Any]]) -> str:
    """Hash the settings that differ from the defaults, and of these kinds the names of the options too."""
    from ablatio.config.kind_lists import volatile
    from ablatio.config.schema import changed

    relevant = {k: v for k, v in changed(config).items() if k not in volatile()}
    for registry in lists:
        knobs = relevant.get(registry.kind, {})
        names = [*(config.get(registry.kind) or ())]
        relevant[registry.kind] = [[n, knobs.get(n, {})] for n in (names if registry.ordered else sorted(names))]
    return hashlib.sha256(json.dumps(renamed.first_names(relevant), sort_keys=True).encode()).hexdigest()[:16]


def read_run(folder: Path) -> dict[str, Any]:
    """Read the config of a run folder, fill in values from the environment, and check it like any other config.

    Raises UserError if the folder holds no run or needs a part that is not installed, PartsNeeded if its file of parts
    was not named, EnvironmentFault if config.json
    cannot be read, ConfigError for invalid settings.
    """
    path = folder / "config.json"
    try:
        data = read_object(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no run folder: it has no config.json\n    try: ls {shell_word(folder.parent)}"
        ) from None
    refuse_another(recorded_in(folder / "manifest.json"), folder)
    try:
        return resolved(data, str(path))
    except ConfigError:
        _refuse_missing_parts(data, folder)
        raise


def _refuse_missing_parts(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError if the run uses a part that is not registered here."""
    missing = unregistered(renamed.current_config(config)[0])
    if not missing:
        return
    try:
        recorded = dict(read_object(folder / "manifest.json")["code"]["parts"])
    except (OSError, ValueError, KeyError, TypeError, EnvironmentFault):
        recorded = {}
    kind, name = missing[0]
    record = recorded.get(f"{kind}/{name}", {})
    source_note = f"; its source is in {folder / 'manifest.json'}" if record.get("source") else ""
    why = how_to_register(kind, name, record.get("distribution", ""), source_note)
    raise UserError(f"{folder} cannot be opened: {why}")


def resolved(public: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Resolve and check a config that was read from a file.

    public  the config as written, with values from the environment left open
    where   its file, for error messages

    Names of older versions are translated, and settings that they lack get their defaults.  Raises UserError if a value
    cannot be resolved, ConfigError for invalid settings.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ablatio.config.environment import from_environment
    from ablatio.config.schema import cast, check, completed
    from ablatio.registry.discovery import load

    load()
    config: Any = json.loads(json.dumps(public))
    try:
        if "${" in json.dumps(public):
            node = OmegaConf.create(config)
            raw, config = config, OmegaConf.to_container(node, resolve=True)
            from_environment(node, raw, config)
    except OmegaConfBaseException as error:  # for example an environment variable that is not set
        what = str(error).splitlines()[0]
        named = re.search(r"[Vv]ariable '(\w+)'", what)
        hint = (
            f"export {named[1]}=..., and the same command"
            if named
            else f"ablatio runs {shell_word(Path(where).parent)}"
        )
        raise UserError(f"{where} cannot be resolved here: {what}\n    try: {hint}") from None
    config, renames = renamed.current_config(config)
    if renames:
        print(f"ablatio: {where} was written by an older version; read as {', '.join(renames)}", file=sys.stderr)
    config = completed(config)  # a run of an older version lacks later settings
    if problems := check(config):
        raise ConfigError(problems)
    return cast(config)


def with_own_tokenizer(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config with the tokenizer stored in `folder`, since what it was trained on may be gone."""
    if not (folder / TOKENIZER).exists():  # a run of a version that did not store it
        return dict(config)
    from ablatio.config.inherit import folder_tokenizer

    part = folder_tokenizer()
    return {**config, "tokenizer": {"name": part.name, **part.defaults, "path": str(folder)}}
