"""`trainer.compile=true` on the command line: the same results, and runs of a sweep share compiled code."""

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
    """Paths of the files that inductor has written: one for each graph and kernel."""
    return {str(path) for path in (cache_root() / "compiled").rglob("*") if path.suffix in (".cpp", ".so", ".py")}


def train(*arguments: str) -> None:
    """Train in a subprocess with a long timeout: compiling takes half a minute on two cores."""
    command = [sys.executable, "-m", "ablatio.cli", "train", *arguments, "trainer.compile=true"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.long
@pytest.mark.slow
def test_sweep_runs_reuse_compiled_code(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_compile_cache_set_by_the_user_is_kept(folder: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMPILED, raising=False)
    if folder:
        monkeypatch.setenv(COMPILED, str(Path(tempfile.gettempdir()) / folder))
    _share_compiled_code()
    assert os.environ[COMPILED].endswith(folder if kept and folder else str(cache_root() / "compiled"))
    monkeypatch.setenv(COMPILED, "restored")  # lets monkeypatch restore the original value
