"""Damaged, swapped, forged and foreign checkpoints are reported and never used; the previous one is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatio.errors import DamagedFile, UserError
from ablatio.storage import atomic_write, manifest
from ablatio.storage.checkpoints import Checkpoints, remove_stray

FILES = ("model.safetensors", "state.safetensors", "json")


def save(saved: Checkpoints, step: int, size: int = 50) -> None:
    state = {"optimizer": {0: {"exp_avg": torch.full((size,), step / 2)}}, "rng": torch.arange(20, dtype=torch.uint8)}
    saved.save(step, {"a.weight": torch.full((size,), float(step)), "b": torch.ones(3)}, state, {"tokens": step * 10})


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Two valid checkpoints, 1 and 2."""
    saved = Checkpoints(tmp_path / "checkpoints", run="ours")
    save(saved, 1)
    save(saved, 2)
    return saved


def file_of(saved: Checkpoints, step: int, kind: str) -> Path:
    return saved.folder / f"step-{step:08d}.{kind}"


def assert_falls_back(saved: Checkpoints, sentence: str) -> None:
    """Assert that loading returns step 1 with the reason, and that loading step 2 itself is rejected."""
    got = Checkpoints(saved.folder, run="ours").load()
    assert (got.step, len(got.skipped)) == (1, 1)
    assert sentence in got.skipped[0]
    assert got.model["a.weight"].tolist() == [1.0] * 50
    with pytest.raises(DamagedFile, match=r"(?s)No usable checkpoint.*one of the other steps: 1$"):
        saved.load(2)


@pytest.mark.parametrize("kind", FILES)
def test_truncated_file_is_detected(saved: Checkpoints, kind: str) -> None:
    path = file_of(saved, 2, kind)
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        assert_falls_back(saved, path.name)
    path.unlink()
    if kind == "json":  # without a manifest there is no checkpoint
        assert saved.load().step == 1
    else:
        assert_falls_back(saved, f"{path.name} cannot be read")


@pytest.mark.parametrize("kind", FILES)
def test_flipped_bit_is_detected(saved: Checkpoints, kind: str) -> None:
    path = file_of(saved, 2, kind)
    whole = path.read_bytes()
    for number in range(100):
        at = number * (len(whole) - 1) // 99  # from the first byte to the last
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << number % 8)]) + whole[at + 1 :])
        assert_falls_back(saved, path.name)
    path.write_bytes(whole)
    assert (saved.load().step, saved.load().skipped) == (2, ())


def test_swapped_files_are_detected(saved: Checkpoints) -> None:
    first, second = file_of(saved, 1, FILES[0]), file_of(saved, 2, FILES[0])
    keep = second.read_bytes()
    shutil.copy(first, second)
    assert_falls_back(saved, "does not match its digest")
    shutil.copy(file_of(saved, 2, FILES[1]), second)
    assert_falls_back(saved, second.name)
    second.write_bytes(keep)
    shutil.copy(file_of(saved, 1, "json"), file_of(saved, 2, "json"))
    assert_falls_back(saved, "belongs to step 1: it was copied or renamed")


def test_files_of_another_run_are_rejected_and_kept(saved: Checkpoints, tmp_path: Path) -> None:
    other = Checkpoints(tmp_path / "other", run="theirs")
    save(other, 2)
    shutil.copy(file_of(other, 2, "json"), file_of(saved, 2, "json"))
    assert_falls_back(saved, "belongs to run 'theirs', not to run 'ours'")
    for kind in FILES:
        shutil.copy(file_of(other, 2, kind), file_of(saved, 2, kind))
    assert_falls_back(saved, "belongs to run 'theirs', not to run 'ours'")
    for step in (3, 4, 5):
        save(saved, step)
    assert saved.steps() == [2, 4, 5]  # files of another run are never removed
    assert Checkpoints(saved.folder).load(2).step == 2  # without a run name any run is accepted


def test_damaged_checkpoints_do_not_count_as_kept(saved: Checkpoints) -> None:
    path = file_of(saved, 2, FILES[0])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    save(saved, 3)
    assert saved.steps() == [1, 2, 3]
    save(saved, 4)
    assert saved.steps() == [3, 4]
    assert len(list(saved.folder.iterdir())) == 6


def test_error_when_no_checkpoint_is_valid(saved: Checkpoints) -> None:
    for path in saved.folder.glob("*.model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"(?s)step-00000002\.model.*step-00000001\.model.*start the run again$"):
        saved.load()


def forge(saved: Checkpoints, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the manifest of step 2 as an attacker would: changed content with a valid digest."""
    path = file_of(saved, 2, "json")
    content = json.loads(path.read_bytes())["content"]
    content = change(content) or content
    path.write_bytes(manifest.sealed(json.dumps(content).encode()))


def forge_model(saved: Checkpoints, data: bytes) -> None:
    file_of(saved, 2, FILES[0]).write_bytes(data)
    record = {"sha256": manifest.seal(data), "bytes": len(data), "names": {"w": "w"}}
    forge(saved, lambda content: content["files"].update(model=record))


def header(**entry: Any) -> bytes:
    text = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        (99_000_000).to_bytes(8, "little") + b"{}",
        (6).to_bytes(8, "little") + b"[[[[[[",
        (4).to_bytes(8, "little") + b"null",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        header(shape=[2**62, 2**62]),
        header(shape=[2**62, 0], data_offsets=[0, 0]),
        header(shape=[-1]),
        header(shape=[True]),
        header(shape="1"),
        header(dtype="F4096"),
        header(data_offsets=[0, 2**64]),
        header(data_offsets=[4, 8]),
        header(data_offsets=[0]),
    ],
    ids=range(15),
)
def test_invalid_safetensors_headers_are_rejected(saved: Checkpoints, data: bytes) -> None:
    forge_model(saved, data)
    assert_falls_back(saved, "no valid safetensors header")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.pop("revision"),
        lambda content: content.update(revision="/../../x"),
        lambda content: content.update(files=[]),
        lambda content: content["files"]["model"].update(names={"a.weight": "gone"}),
        lambda content: content["files"]["state"].update(names=None),
        lambda content: content.update(state={"~tensor": "gone"}),
        lambda content: content.update(state={"~numpy": ["O", "00"]}),
        lambda content: content.update(state={"~eval": "1"}),
        lambda content: [content],
    ],
    ids=range(10),
)
def test_manifest_with_valid_digest_and_invalid_content_is_rejected(
    saved: Checkpoints, change: Callable[..., Any]
) -> None:
    forge(saved, lambda content: None if isinstance(change(content), dict | str | int | None) else [content])
    assert_falls_back(saved, "")


@pytest.mark.parametrize("place", ["state", "info"])
def test_builder_key_is_refused_and_not_skipped(saved: Checkpoints, place: str) -> None:
    forge(saved, lambda content: content[place].update(hp={"model": [{"_target_": "os.system"}]}))
    with pytest.raises(UserError, match=rf"^{place}\.hp\.model\.0\._target_: "):
        saved.load()


def test_newer_format_suggests_an_upgrade(saved: Checkpoints) -> None:
    forge(saved, lambda content: content.update(format=2))
    with pytest.raises(UserError, match="pip install -U ablatio"):
        saved.load()


def test_temporary_files_of_dead_writers_only_are_removed(saved: Checkpoints) -> None:
    (saved.folder / ".ablatio-0123.tmp").write_bytes(b"half")
    orphan = file_of(saved, 7, FILES[0])  # renamed, but its manifest was never written
    orphan.write_bytes(b"whole")
    living, file = atomic_write._open_temp(saved.folder)
    with file:
        save(saved, 3)
        assert living.exists()
    assert remove_stray(saved.folder) == 1
    assert len(list(saved.folder.iterdir())) == 6
