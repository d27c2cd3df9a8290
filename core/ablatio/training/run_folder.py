"""Run folders: a fresh one, and what an existing one says of its run."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio.errors import ConfigError, EnvironmentFault, UserError
from ablatio.registry import renamed
from ablatio.registry.session_parts import how_to_register, unregistered
from ablatio.storage.checkpoints import make_folder

CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer.json"


def new_folder(config: Mapping[str, Any], name: str | None = None) -> Path:
    """A fresh run folder under `out`; an existing one with a run in it is never overwritten."""
    root = Path(config["out"]).expanduser()
    name = name or config["name"] or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = root / name
    if (folder / "config.json").exists():
        if config["name"]:
            raise UserError(
                f"{folder} holds a run already\n    try: ablatio train resume={folder}, or another name={name}-2"
            )
        return new_folder(config, f"{name}_{time.time_ns() % 1000:03d}")
    return make_folder(folder)


def run_id(config: Mapping[str, Any]) -> str:
    """Names the run in its checkpoints: a hash of the settings that make its numbers, where they are not the default.

    So a setting that a later version adds leaves the names of older runs as they are.
    """
    from ablatio.config.kind_lists import volatile
    from ablatio.config.schema import changed

    made = {k: v for k, v in changed(config).items() if k not in volatile()}
    return hashlib.sha256(json.dumps(renamed.first_names(made), sort_keys=True).encode()).hexdigest()[:16]


def read_run(folder: Path) -> dict[str, Any]:
    """The config of a run folder, with values from the environment filled in, checked like any other."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: it has no config.json\n    try: ls {folder.parent}") from None
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise EnvironmentFault(f"{path} holds no config: {type(data).__name__} came, an object was expected")
    try:
        return resolved(data, str(path))
    except ConfigError:
        _refuse_lost_parts(data, folder)
        raise


def _refuse_lost_parts(config: Mapping[str, Any], folder: Path) -> None:
    """UserError where the run was made of a part that nothing registers here."""
    lost = unregistered(renamed.current_config(config)[0])
    if not lost:
        return
    try:
        made_of = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["code"]["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        made_of = {}
    kind, name = lost[0]
    told = made_of.get(f"{kind}/{name}", {})
    kept = f"; its source is in {folder / 'manifest.json'}" if told.get("source") else ""
    why = how_to_register(kind, name, told.get("distribution", ""), kept)
    raise UserError(f"{folder} cannot be opened: {why}")


def resolved(public: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config that was written down in `where`, with values from the environment filled in, checked like any other."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ablatio.config.schema import cast, check, completed
    from ablatio.registry.discovery import load

    load()
    text = json.dumps(public)
    try:
        to_fill = "${" in text
        config: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=True) if to_fill else json.loads(text)
    except OmegaConfBaseException as error:  # such as a variable that this environment does not have
        raise UserError(f"{where} cannot be resolved here: {str(error).splitlines()[0]}") from None
    config, renames = renamed.current_config(config)
    if renames:
        print(f"ablatio: {where} was written by an older version; read as {', '.join(renames)}", file=sys.stderr)
    config = completed(config)  # a run of an older version lacks the settings that came later
    if problems := check(config):
        raise ConfigError(problems)
    return cast(config)


def with_own_tokenizer(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of the run in `folder` with the tokenizer that lies there: where that came from may be gone."""
    if not (folder / TOKENIZER).exists():  # written before runs kept theirs
        return dict(config)
    from ablatio.config.inherit import folder_tokenizer

    part = folder_tokenizer()
    return {**config, "tokenizer": {"name": part.name, **part.defaults, "path": str(folder)}}
