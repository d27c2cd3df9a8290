"""A run folder belongs to one process: a second start, resumes and copies are refused, a dead owner is replaced."""

import json
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.runs import SMALL_RECIPE, TINY, ablatio, begin, summary

from ablatio.errors import UserError
from ablatio.storage.folder_lock import Owner, own, owner_of
from ablatio.storage.process import this_process

LONG = ("train.steps=100000", "train.checkpoint_every=4", "train.val_every=null")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def living(arguments: list[str], log: Path, sign: Path) -> Iterator[mp.process.BaseProcess]:
    """A command that still runs when `sign` exists; it is killed at the end."""
    process = begin(arguments, log)
    try:
        wait_for(sign.exists)
        assert process.is_alive()
        yield process
    finally:
        process.kill()
        process.join()


def test_a_living_run_is_left_alone_and_a_killed_one_is_taken_over(text_file: Path, tmp_path: Path) -> None:
    settings = ["train", *TINY, *LONG, f"source.path={text_file}", f"out={tmp_path}"]
    run = tmp_path / "a"
    with living([*settings, "name=a"], tmp_path / "log", run / "checkpoints/step-00000004.json") as process:
        owner = f"process {process.pid} on {os.uname().nodename}"
        config = (run / "config.json").read_bytes()
        for other in (
            [*settings, "name=a"],
            ["resume", str(run)],
            ["train", *TINY, "model=run", f"model.path={run}", f"source.path={text_file}", f"out={tmp_path}", "name=b"],
        ):
            refused = ablatio(other, tmp_path / "other")
            assert refused.code == 2, refused
            assert owner in refused.err and f"kill {process.pid}" in refused.err, refused.err
        assert (run / "config.json").read_bytes() == config and not (run / "summary.json").exists()
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        assert process.exitcode == 75
    with living(["train", f"resume={run}"], tmp_path / "log", run / "run.lock") as process:
        wait_for(lambda: owner_of(run / "run.lock"))
    assert owner_of(run / "run.lock") is None  # killed with SIGKILL
    with living(["train", f"resume={run}"], tmp_path / "log", run / "run.lock") as process:
        wait_for(lambda: (found := owner_of(run / "run.lock")) and found.pid == process.pid)


def test_of_two_equal_commands_at_once_one_trains(text_file: Path, tmp_path: Path) -> None:
    """Both ask before either has written anything; the folder then holds the run of one of them alone."""
    rates = {norm: ["train", *TINY, f"norm={norm}", f"source.path={text_file}", f"out={tmp_path}", "name=a"]
             for norm in ("rmsnorm", "layernorm")}  # fmt: skip
    processes = {norm: begin(command, tmp_path / norm) for norm, command in rates.items()}
    for process in processes.values():
        process.join()
    codes = {norm: process.exitcode for norm, process in processes.items()}
    assert sorted(codes.values()) == [0, 2], codes
    winner = min(codes, key=lambda norm: codes[norm] or 0)
    config, manifest = (json.loads((tmp_path / "a" / name).read_text()) for name in ("config.json", "manifest.json"))
    assert config["norm"]["name"] == winner and f"norm/{winner}" in manifest["code"]["parts"]
    assert summary(tmp_path / "a")["status"] == "done"


def test_a_recipe_runs_once_at_a_time(tmp_path: Path) -> None:
    settings = ["train", *SMALL_RECIPE, "stages.sft.train.steps=100000", f"out={tmp_path}"]
    with living(settings, tmp_path / "log", tmp_path / "r/01-sft/config.json") as process:
        before = (tmp_path / "r/recipe.json").read_bytes()
        for command in (settings, ["resume", str(tmp_path / "r")]):
            refused = ablatio(command, tmp_path / "other")
            assert refused.code == 2 and f"process {process.pid} on" in refused.err, refused.err
        assert (tmp_path / "r/recipe.json").read_bytes() == before
    assert owner_of(tmp_path / "r/run.lock") is None


def test_a_link_is_no_run_folder(text_file: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path / 'runs'}"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "elsewhere")
    linked = ablatio(["train", *settings, "name=a"], tmp_path / "log")
    assert linked.code == 2 and "is a link to" in linked.err
    assert ablatio(["train", *settings, "name=b", "train.steps=4"], tmp_path / "log").code == 0
    (tmp_path / "runs/b/summary.json").unlink()
    (tmp_path / "runs/b/checkpoints").rename(tmp_path / "elsewhere/checkpoints")
    (tmp_path / "runs/b/checkpoints").symlink_to(tmp_path / "elsewhere/checkpoints")
    linked = ablatio(["train", f"resume={tmp_path / 'runs/b'}"], tmp_path / "log")
    assert linked.code == 2 and "checkpoints is a link to" in linked.err


def test_the_lock_is_held_once_within_a_process_and_its_children_do_not_inherit_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with own(path) as first, own(path) as second:
        assert first is None and second == Owner(**this_process()) == owner_of(path)
        context = mp.get_context("fork")
        seen = context.Queue()
        child = context.Process(target=lambda: seen.put(owner_of(path)))
        child.start()
        assert seen.get(timeout=20) == Owner(**this_process())
        child.join()
        assert owner_of(path)  # a child that ends does not release it
    assert owner_of(path) is None and path.read_text() == ""


@pytest.mark.parametrize(("host", "pid", "free"), [("", 2**22 + 1, True), ("", 0, False), ("elsewhere", 7, False)])
def test_where_the_filesystem_has_no_locks_the_name_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, pid: int, free: bool
) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    me = this_process()
    named = {"pid": pid or me["pid"], "host": host or me["host"], "start": me["start"]}
    (tmp_path / "run.lock").write_text(json.dumps(named))
    assert (owner_of(tmp_path / "run.lock") is None) is free
    with own(tmp_path / "run.lock") as other:
        assert (other is None) is free


def test_the_refusal_names_the_folder_and_a_command(tmp_path: Path) -> None:
    from ablatio.training.run_folder import owned, refuse_living

    folder = tmp_path / "a b"
    with owned(folder, resume=False):
        with (
            pytest.raises(UserError, match=r"is in use[\s\S]*'resume=.*a b'"),
            owned(folder, resume=True),
        ):
            pass
        with pytest.raises(UserError, match="is not finished"):
            refuse_living(folder, "model.path")
    refuse_living(folder, "model.path")
