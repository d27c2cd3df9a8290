"""`trainer.compile=true` from the command line: the same numbers, and the next run of a sweep compiles nothing anew."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.runs import TINY, summary

from ablatio.storage.paths import cache_root
from ablatio.training.prepare import COMPILED, _share_compiled_code


def compiled() -> set[str]:
    """What inductor has made: a file for each graph and kernel."""
    return {str(path) for path in (cache_root() / "compiled").rglob("*") if path.suffix in (".cpp", ".so", ".py")}


def train(*arguments: str) -> None:
    """In a process of its own, which may take its time: compiling costs half a minute of two cores."""
    command = [sys.executable, "-m", "ablatio.cli", "train", *arguments, "trainer.compile=true"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_runs_of_a_sweep_share_what_was_compiled(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.steps=4", "data.document_mask=false"]
    train(*settings, "name=one")
    made = compiled()
    assert made, "nothing was compiled"
    train("-m", *settings, "seed=1,2", "name=both")
    assert compiled() == made
    found = [json.loads(path.read_text())["after"] for path in (tmp_path / "both").rglob("summary.json")]
    assert len(found) == 2 and found[0] != found[1] and summary(tmp_path / "one")["after"] in found


@pytest.mark.parametrize("folder, kept", [(None, False), ("torchinductor_me", False), ("mine/compiled", True)])
def test_a_folder_of_the_users_own_stays(folder: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMPILED, raising=False)
    if folder:
        monkeypatch.setenv(COMPILED, str(Path(tempfile.gettempdir()) / folder))
    _share_compiled_code()
    assert os.environ[COMPILED].endswith(folder if kept and folder else str(cache_root() / "compiled"))
    monkeypatch.setenv(COMPILED, "restored")  # what stood before comes back at the end
