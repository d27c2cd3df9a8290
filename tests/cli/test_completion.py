"""Completion: flags of every command and their values, files where nothing else fits, and the code for each shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablatio.cli.commands import COMMANDS, arguments_of
from ablatio.cli.completion import OWN_FLAGS, SHELLS, candidates
from ablatio.cli.main import main


def test_every_command_has_its_flags() -> None:
    for command in COMMANDS:
        found = candidates([command, "--"])
        assert "--help" in found, command
        known = OWN_FLAGS.get(command) or [f for a in arguments_of(command) for f in a.option_strings]
        assert {*found} == {f for f in known if f.startswith("--")}, command
    assert "--serve" in candidates(["report", "runs/x", "--se"]) and candidates(["report", "--serve", "--qu"])


def test_values_of_flags() -> None:
    assert candidates(["report", "--correction", ""]) == ["bh", "dunnett", "holm", "none"]
    assert candidates(["report", "--correction", "d"]) == ["dunnett"]
    assert candidates(["report", "--out", ""]) == [], "the shell completes folders"
    assert candidates(["report", "--quiet", ""]) == []
    assert candidates(["completion", "z"]) == ["zsh"]


def test_files_are_left_to_the_shell() -> None:
    for words in (["report", "runs/"], ["export", "ru"], ["runs", ""], ["train", "resume=ru"], ["no-command", "x"]):
        assert candidates(words) == [], words


def test_settings_stay_settings() -> None:
    assert candidates(["train", "norm=rms"]) == ["norm=rmsnorm"]
    assert "optimizer.lr=" in candidates(["train", "--cfg", "job", "optimizer."])
    assert "resume=" in candidates(["train", ""]) and "-m" in candidates(["train", "-"])


def test_code_of_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, code in SHELLS.items():
        assert main(["completion", shell]) == 0 and capsys.readouterr().out == code
        assert "ablatio __complete" in code
        if (program := shutil.which(shell)) is not None:  # its syntax
            subprocess.run([program, "-n"], input=code, text=True, check=True, capture_output=True)
    assert "_files" in SHELLS["zsh"] and "__fish_complete_path" in SHELLS["fish"]


BASH = """
ablatio() {{ "{python}" -m ablatio "$@"; }}
eval "$(ablatio completion bash)"
COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
compopt() {{ :; }}
_ablatio
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [("ablatio report --interval m", ["moderated"]), ("ablatio train norm=rms", ["rmsnorm"]), ("ablatio ru", ["runs"])],
)
def test_bash_completes(line: str, found: list[str]) -> None:
    code = BASH.format(python=sys.executable, line=line)
    path = os.pathsep.join(str(Path(__file__).parents[2] / p) for p in ("core", "plugins"))
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.split() == found, done.stderr
