"""Lists of techniques: each one that is there composes and chooses what it names; files that are none are refused."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ablatio.cli import list as list_command
from ablatio.cli.commands import COMMANDS
from ablatio.config import techniques
from ablatio.config.compose_many import Composer
from ablatio.errors import AblatioError, DamagedFile
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES

AREAS = techniques.areas()


@pytest.mark.parametrize("area", AREAS)
def test_each_technique_that_is_there_composes(area: str) -> None:
    composer, refused = Composer(), list[str]()
    for technique in (t for t in AREAS[area] if t.overrides):
        assert technique.parts or any("." in text for text in technique.overrides), technique
        try:
            config = composer.compose(technique.overrides).config
        except AblatioError as error:
            refused.append(f"{technique.name}: {error}")
            continue
        chosen = {f"{kind}={name}" for kind in REGISTRIES if config.get(kind) for name in _options(config, kind)}
        assert {*technique.parts} <= chosen, technique
    assert not refused, "\n".join(refused)


def _options(config: dict[str, Any], kind: str) -> list[str]:
    node, registry = config[kind], REGISTRIES[kind]
    if registry.multiple:
        return [*node]
    return [node["name"], *(n["name"] for n in per_layer.in_use(config, registry) if kind in per_layer.varied(config))]


def test_each_command_is_one_of_ours_with_flags_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.cli.main import main

    for technique in (t for found in AREAS.values() for t in found if t.command):
        program, command, *words = shlex.split(technique.command)
        assert program == "ablatio" and command in COMMANDS, technique
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert all(word in said for word in words if word.startswith("-")), technique


def test_the_list_says_of_each_part_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    list_command.run(["--json"])
    said = json.loads(capsys.readouterr().out)
    assert "mixers: Kimi delta attention" in said["attention"]["kda"]["techniques"]
    listed = {t["name"]: t for t in said["techniques"]["mixers"]["techniques"]}["Kimi delta attention"]
    assert listed["there"] and listed["parts"] == ["attention=kda", "position=none"]
    assert {t["name"] for area in said["techniques"].values() for t in area["techniques"] if not t["there"]} == {
        t.name for found in AREAS.values() for t in found if t.missing
    }


def test_a_list_of_ones_own_names_what_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "conf" / "techniques" / "theirs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# What a group tries.\n"
        "a: {overrides: ['layers.attention=[{sliding*2: {window: 8}},perceiver]', norm=rmsnorm]}\n"
        "b: {overrides: [norm=layernorm]}\n"
    )
    monkeypatch.chdir(tmp_path)
    first, second = techniques.areas()["theirs"]
    assert first.refused == "there is no attention=perceiver" and first.parts == ["attention=sliding", "norm=rmsnorm"]
    assert not second.refused and second.origin == REGISTRIES["norm"]["layernorm"].paper
    list_command.run(["techniques"])
    said = capsys.readouterr().out
    assert "techniques=theirs 1 of 2 can be chosen: What a group tries." in said
    assert "not here: there is no attention=perceiver" in said
    for wrong in (
        "a: norm=rmsnorm",
        "a: {overrides: norm=rmsnorm}",
        "a: {command: ls, missing: x}",
        "a: {by: x}",
        "a:",
    ):
        file.write_text(wrong)
        with pytest.raises(DamagedFile, match=r"theirs\.yaml: `a`"):
            techniques.areas()
