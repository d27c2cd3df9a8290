"""Commands that a message shows: as one types them into a shell, they name the same folder and give the same config."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.runs import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablatio.cli import resume
from ablatio.config.compose import compose_run
from ablatio.config.words import quoted, text_value
from ablatio.errors import ConfigError, UserError
from ablatio.report.rerun_command import line, of_config
from ablatio.storage.paths import shell_word
from ablatio.training.run_folder import holds_a_run, new_folder, resume_command

ODD = "ab1é=,:;'\"$ ()[]{}#&|*?!~\\`<>%@+-.ü中"
NAMES = st.text(st.sampled_from(ODD), min_size=1, max_size=12).filter(  # ${ begins an interpolation, also in quotes
    lambda name: name not in (".", "..") and "${" not in name
)
PATHS = ["a b", "lr=3", "a,b", "it's", 'say "x"', "$HOME", "a[1]", "{x}", "#1", "é", "a\\b", "a\\'b", "x;ls", "~", "*"]


def typed(command: str) -> list[str]:
    """The words that a real shell makes of a command."""
    made = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, cwd="/")
    return made.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", PATHS)
def test_the_command_that_resumes_a_run_names_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert typed(resume_command(folder)) == ["ablatio", "train", f"resume={folder}"]
    assert typed(f"ablatio resume {shell_word(folder)}") == ["ablatio", "resume", str(folder)]
    with pytest.raises(UserError, match=r"it has no config\.json"):  # and not: expected one folder
        resume.run([str(folder)])


@pytest.mark.parametrize("name", PATHS)
def test_a_refused_folder_shows_a_command_for_a_shell(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "a"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert holds_a_run(folder)
    with pytest.raises(UserError) as refused:
        new_folder({"out": str(tmp_path / name), "name": "a"})
    shown = str(refused.value).splitlines()[1].partition("try: ")[2].rpartition(", or another")[0]
    assert shlex.split(shown) == ["ablatio", "train", f"resume={folder}"]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20).filter(lambda s: "${" not in s and not any(0xD800 <= ord(c) < 0xE000 for c in s)))
@example("1e5")
@example("null")
@example("True")
@example(".5")
@example("inf")
@example("a\\")
@example("\\'")
def test_a_text_is_the_same_text_in_hydras_grammar(text: str) -> None:
    for value in (quoted(text), text_value(text)):
        assert OverridesParser.create().parse_override(f"a.b={value}").value() == text


@settings(max_examples=4, deadline=None)
@given(name=NAMES)
def test_the_command_that_repeats_a_run_composes_to_its_config(name: str) -> None:
    config = compose_run(["source=text", f"source.path={quoted(f'/data/{name}')}"]).config
    words = shlex.split(line(of_config(config)))
    assert words[:2] == ["ablatio", "train"]
    assert compose_run(words[2:]).config == config


@settings(max_examples=3, deadline=None)
@given(name=NAMES, bad=st.sampled_from(["norm=rmsnrom", "position=rop", "optimizer.lrr=1", "train.stepz=5"]))
@example("a,b", "norm=rmsnrom")
@example("a b=c", "norm=rmsnrom")
def test_this_runs_is_composed_and_a_path_typed_as_it_is_gets_its_quotes(name: str, bad: str) -> None:
    """A path that Hydra's grammar does not take without quotes: the shown command has them."""
    path = f"/data/{name}"
    with pytest.raises(ConfigError) as refused:
        compose_run(["source=text", f"source.path={path}", bad])
    *_, last = str(refused.value).splitlines()
    if not last.startswith("This runs: "):
        return
    words = shlex.split(last.removeprefix("This runs: "))
    composed = compose_run(words[2:])
    found = composed.config["source"]["path"]
    assert found == path or "\\" in path or "'" in path or '"' in path or name.strip() != name


@pytest.mark.parametrize("name", ["a,b", "a b=c", "[a", "{a}", "x y,z"])
def test_a_path_with_special_characters_is_repaired(name: str) -> None:
    try:
        found = compose_run(["source=text", f"source.path=/data/{name}"]).config["source"]["path"]
    except ConfigError as error:
        *_, last = str(error).splitlines()
        assert last.startswith("This runs: "), error
        found = compose_run(shlex.split(last)[4:]).config["source"]["path"]
    assert found == f"/data/{name}"


def test_commands_of_this_file_are_real(tmp_path: Path) -> None:
    """The words of the tests reach a shell that is there."""
    assert shutil.which("sh") and typed("a 'b c'") == ["a", "b c"] and TINY
