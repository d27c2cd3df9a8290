"""Full disks, missing permissions and failing calls (on real try_mount if possible): the last checkpoint survives."""

import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatio.errors import DamagedFile, EnvironmentFault
from ablatio.storage import atomic_write
from ablatio.storage.checkpoints import Checkpoints, make_folder, write_json, write_text


def save(saved: Checkpoints, step: int) -> None:
    saved.save(step, {"w": torch.full((50,), float(step))}, {"optimizer": {0: torch.ones(50)}})


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Two valid checkpoints, 1 and 2."""
    saved = Checkpoints(tmp_path / "checkpoints")
    save(saved, 1)
    save(saved, 2)
    return saved


def try_mount(*args: str | Path) -> bool:
    return bool(shutil.which("mount")) and subprocess.run(["mount", *args], capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A filesystem of 1 MiB at `folder`, or, if mounting is not permitted, a limit on the size of a file."""
    folder.mkdir()
    if try_mount("-t", "tmpfs", "-o", "size=1m", "none", folder):
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The model alone does not fit; only the state does not; only the manifest does not.
@pytest.mark.parametrize("sizes", [(200_000, 10), (100_000, 100_000), (1000, 10)], ids=["model", "state", "manifest"])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, sizes: tuple[int, int]) -> None:
    with small_disk(tmp_path / "disk"):
        saved = Checkpoints(tmp_path / "disk" / "checkpoints")
        save(saved, 1)
        before = sorted(path.name for path in saved.folder.iterdir())
        note = {"note": "x" * 1_100_000} if sizes[0] == 1000 else {}
        with pytest.raises(EnvironmentFault, match=r"(?s)Cannot write .*step-00000002.*\n    try: (df -h|ulimit)"):
            saved.save(2, {"w": torch.ones(sizes[0] * 2)}, {"x": torch.ones(sizes[1])}, note)
        assert sorted(path.name for path in saved.folder.iterdir()) == before
        assert (saved.load().step, saved.load().skipped) == (1, ())
        write_json(tmp_path / "disk" / "summary.json", {"loss": 1})
        with pytest.raises(EnvironmentFault, match=r"Cannot write .*summary\.json"):
            write_text(tmp_path / "disk" / "summary.json", "x" * 2_000_000)
        assert json.loads((tmp_path / "disk" / "summary.json").read_text()) == {"loss": 1}


def test_missing_permission_is_an_environment_fault(
    saved: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases that also affect root: a path below a file, a read-only mount, and a call that fails with EACCES."""
    (tmp_path / "file").write_text("x")
    for action in (make_folder, lambda path: write_text(path, "x"), lambda path: save(Checkpoints(path), 1)):
        with pytest.raises(EnvironmentFault, match=r"(a part of the path is a file|in the way)"):
            action(tmp_path / "file" / "x")
    folder = saved.folder
    if try_mount("--bind", "-o", "ro", folder, folder):
        try:
            with pytest.raises(EnvironmentFault, match=r"(?s)read-only.*try: findmnt -T"):
                save(saved, 3)
            assert saved.load().step == 2
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    real = Path.open

    def refuse(path: Path, mode: str = "r", *args: Any) -> Any:
        if mode == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *args)

    monkeypatch.setattr(Path, "open", refuse)
    refused = "xb"
    with pytest.raises(EnvironmentFault, match=r"(?s)Cannot write .*permission denied \(EACCES\).*try: ls -ld"):
        save(saved, 3)
    refused = "rb"
    with pytest.raises(EnvironmentFault, match=r"Cannot read .*permission denied") as caught:
        saved.load()  # not damage, so no older checkpoint is loaded instead
    assert not isinstance(caught.value, DamagedFile)
    refused = ""
    assert (saved.load().step, saved.load().skipped) == (2, ())


@pytest.mark.parametrize(
    ("name", "call"), [*(("fsync", call) for call in range(1, 6)), *(("replace", n) for n in (1, 2, 3))]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_failure_of_each_call_leaves_no_temporary_files(
    saved: Checkpoints, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, call: int
) -> None:
    """Three files are synced and renamed; the folder is synced before and after the last rename, the commit."""
    owner: Any = atomic_write.os if name == "fsync" else Path
    real, count = getattr(owner, name), 0

    def fail(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise error
        return real(*args)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises((EnvironmentFault, KeyboardInterrupt)):
        save(saved, 3)
    monkeypatch.undo()
    committed = (name, call) == ("fsync", 5)
    assert len(list(saved.folder.iterdir())) == (9 if committed else 6)
    assert (saved.load().step, saved.load().skipped) == (3 if committed else 2, ())
    save(saved, 3)
    assert (saved.load().step, saved.steps()) == (3, [2, 3])
