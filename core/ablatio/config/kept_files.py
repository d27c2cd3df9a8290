"""Copies of the user's own YAML files in the folder of a study or recipe, so that resuming it needs nothing else.

FOLDER/files/1-study.yaml   the file that `+sweep=./study.yaml` named

The copies are settings like all others: they pass the same checks when they are read again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablatio.config import local_files, yaml_files
from ablatio.config.words import key_of, value_of
from ablatio.storage.atomic_write import make_folder, write_bytes

FOLDER = "files"
RECORD = "files"  # key of study.json and recipe.json

Record = dict[str, str]  # group, option: as in the command; copy: name in FOLDER; sha256


def keep(overrides: Sequence[str], folder: Path) -> list[Record]:
    """Copy the local files that overrides choose into `folder`/files; returns what `kept` needs to find them again."""
    found = list(_chosen(overrides))
    if not found:
        return []
    records, place = list[Record](), make_folder(folder / FOLDER)
    for number, (option, file) in enumerate(found, 1):
        copy = f"{number}-{file.name}.yaml"
        digest = write_bytes(place / copy, file.path.read_bytes())
        records.append({"group": file.group, "option": option, "copy": copy, "sha256": digest})
    return records


def _chosen(overrides: Sequence[str]) -> Iterator[tuple[str, yaml_files.File]]:
    groups = yaml_files.files()
    for text in overrides:
        options = groups.get(key_of(text), {})
        for word in re.split(r"[,()\[\]\s'\"]+", value_of(text)):
            if word in options and options[word].local:
                yield word, options[word]


@contextmanager
def kept(records: Any, folder: Path) -> Iterator[None]:
    """Context in which the copies in `folder` stand for the files that a command named or found in local folders.

    records  as `keep` returned them, read from a file that others may have changed: what does not fit is passed over
    """
    places = dict[tuple[str, str], Path]()
    for record in records if isinstance(records, Sequence) else ():
        if isinstance(record, Mapping) and all(isinstance(record.get(k), str) for k in ("group", "option", "copy")):
            path = folder / FOLDER / Path(record["copy"]).name
            if path.is_file() and not path.is_symlink():
                places[record["group"], record["option"]] = path.absolute()
    with local_files.standing_for(places):
        yield
