"""A damaged file: each command says what is wrong, and shows a command that works without the file."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio

from ablatio.cli.damaged_files import HINT
from ablatio.cli.main import main

# Command, with {} for the run, and the file of the run that is damaged.
COMMANDS = [
    ("evaluate {}", "config.json"), ("generate {} ab", "config.json"), ("export {} --to exported", "config.json"),
    ("artifact {}", "config.json"), ("train resume={}", "config.json"), ("resume {}", "config.json"),
    ("train model=run model.path={}", "config.json"),
    ("generate {} ab", "tokenizer.json"), ("evaluate {}", "checkpoints"),
    ("train extend={} train.steps=9", "config.json"),
    ("compare {} {}", "config.json"), ("compare {} {}", "summary.json"), ("compare {} {} --json", "manifest.json"),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run."""
    out = tmp_path_factory.mktemp("broken") / "my runs"
    out.mkdir()
    (out / "text.txt").write_text("\n\n".join(f"Paragraph {i}: people meet on bridge {i % 7}." for i in range(60)))
    words = [*TINY, f"source.path={out / 'text.txt'}", f"out={out}", "name=a", "train.steps=4"]
    done = ablatio(["train", *words], out / "log")
    assert done.code == 0, done.err
    return out


@pytest.mark.parametrize(("command", "file"), COMMANDS)
def test_a_damaged_run_shows_the_others(
    command: str, file: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "my runs")
    run = tmp_path / "my runs" / "a"
    damaged = (run / "checkpoints").glob("*.json") if file == "checkpoints" else [run / file]
    for path in damaged:
        path.write_text('{"model": [')
    code = main([word.replace("{}", str(run)) for word in command.split()])
    said = capsys.readouterr().err
    assert code in (2, 5) and said.count(HINT) == 1, said
    assert run.name in said
    hint = shlex.split(said.strip().rsplit(HINT.strip(), 1)[1])
    assert hint == ["ablatio", "runs", str(run.parent)] or file == "checkpoints"
    if hint[0] == "ablatio":
        assert main([*hint[1:], "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        known = file in ("config.json", "summary.json", "manifest.json")
        assert (shown["folder"], shown["state"]) == (str(run), "damaged" if known else "done")


def test_a_damaged_yaml_file_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("norm: [\n")
    assert main(["size", *TINY, "preset=./my.yaml"]) in (2, 5)
    said = capsys.readouterr().err
    hint = said.strip().rsplit(HINT.strip(), 1)[1]
    assert "my.yaml" in said and "my.yaml" not in hint
    assert main(shlex.split(hint)[1:]) == 0
