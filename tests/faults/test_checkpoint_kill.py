"""SIGKILL while checkpoints are written: every step reported as saved exists and is valid.

`pytest tests/faults --select all -k kill --results tests/results/kills.json` records the number of kills of each test.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults
KILLER = Path(__file__).with_name("checkpoint_killer.py")


@pytest.fixture(params=["same filesystem as TMPDIR", "another filesystem"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkpoint folder on TMPDIR's filesystem or another one, where Lightning's writer would lose checkpoints."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if request.param.startswith("same") or not os.access("/dev/shm", os.W_OK):
        yield tmp_path / "checkpoints"
        return
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        assert other.stat().st_dev != tmp_path.stat().st_dev
        yield other / "checkpoints"
    finally:
        shutil.rmtree(other)


def killer(*args: Any) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, KILLER, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_checkpoints_survive_kills_at_random_times(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    kills = killer("random", folder, 50)
    record_property("kills", len(kills))
    assert len(kills) == 50
    for kill in kills:
        assert kill["right"] and not kill["skipped"], kill
        assert kill["loaded"] - kill["committed"] in (0, 1), kill  # 1: committed, but killed before reporting it
    assert kills[-1]["loaded"] > 0  # the writers did write
    assert len(list(folder.iterdir())) <= 9  # two checkpoints and the last writer's files only


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "the same step again"])
def test_checkpoints_survive_a_kill_before_each_file_operation(
    tmp_path: Path, step: int, record_property: Callable[[str, object], None]
) -> None:
    lines = killer("points", tmp_path / "c", step)
    kills, after = lines[::2], lines[1::2]
    record_property("kills", len(kills) - 1)  # the last writer finished
    for kill in kills:
        assert kill["right"] and not kill["skipped"], kill
        assert (kill["loaded"], kill["mark"]) in ((2, 0), (step, 1)), kill
    new = [kill["mark"] for kill in kills]
    assert new == sorted(new) and {0, 1} == set(new)  # there is exactly one commit point
    assert len(kills) > 15
    for line in after:
        assert (line["next"], line["steps"][-1], line["files"]) == (4, 4, 6), line
