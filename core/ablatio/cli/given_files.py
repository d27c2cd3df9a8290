"""Words that any command takes: `parts=FILE`, a file of parts, and `--config-dir DIR`, a folder of YAML options."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ablatio.config.local_files import VARIABLE
from ablatio.errors import UserError
from ablatio.registry.parts_file import KEY, PartsFile, loaded
from ablatio.storage.paths import shell_word

PREFIX = f"{KEY}="
FLAGS = ("--config-dir", "-cd")
MANY = ("-m", "--multirun")
WITHOUT_PARTS = ("fetch", "new-plugin", "doctor", "completion")


@contextmanager
def given_files(words: Sequence[str]) -> Iterator[list[str]]:
    """Context in which the parts and options of the named files exist; yields the command's other words.

    Nothing but these words names a file of parts: they are what the user typed.
    """
    folder, rest = taken_folder(words)
    paths = [word.removeprefix(PREFIX) for word in rest if word.startswith(PREFIX)]
    rest = [word for word in rest if not word.startswith(PREFIX)]
    if added := [word for word in rest if word.lstrip("+~").startswith(PREFIX)]:
        raise UserError(f"{added[0]}: a file of parts is no setting of a config\n    try: {added[0].lstrip('+~')}")
    file = _file(paths, rest)
    with config_dir(folder), loaded(file):
        yield rest


def _file(paths: Sequence[str], rest: Sequence[str]) -> PartsFile | None:
    if not paths:
        return None
    if rest and rest[0] in WITHOUT_PARTS:
        raise UserError(f"{PREFIX}{paths[0]} came, and `{rest[0]}` uses no parts\n    try: ablatio {rest[0]} --help")
    # A comma may be part of a file's name.
    if len(paths) > 1 or ("," in paths[0] and not Path(paths[0]).exists()):
        came = " and ".join(PREFIX + path for path in paths)
        raise UserError(f"{came} came; one file of parts was expected, which may hold any number of parts\n"
                        "    try: ablatio new-plugin my-parts, for parts in several files")  # fmt: skip
    if set(MANY) & set(rest) or _resumes_study(rest):
        # The file imports torch here; with one thread this process can still be forked for the runs.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return PartsFile.read(paths[0])


def _resumes_study(words: Sequence[str]) -> bool:
    return words[:1] == ["resume"] and any((Path(word) / "study.json").exists() for word in words[1:])


def taken_folder(words: Sequence[str]) -> tuple[str, list[str]]:
    """(the folder of --config-dir or "", the words without it)."""
    folder, rest, coming = "", list[str](), False
    for word in words:
        flag, equals, value = word.partition("=")
        if coming:
            folder, coming = word, False
        elif flag in FLAGS:
            folder, coming = value, not equals
        else:
            rest.append(word)
    if coming:
        raise UserError(f"{FLAGS[0]} needs a folder\n    try: {FLAGS[0]} conf")
    return folder, rest


@contextmanager
def config_dir(folder: str) -> Iterator[None]:
    """Set the environment variable that names the folder, for this process and those that it starts."""
    if not folder:
        yield
        return
    if not Path(folder).expanduser().is_dir():
        parent = shell_word(Path(folder).parent)
        raise UserError(f"{FLAGS[0]} {folder}: there is no such folder\n    try: ls {parent}")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join([str(Path(folder).expanduser().absolute()), *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update({VARIABLE: before} if before else {})
