"""A start that fails leaves no folder behind; a run or study that has begun keeps its own."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ablatio.api.multirun import _discard_unstarted, _titles
from ablatio.cli.main import main
from ablatio.errors import EnvironmentFault, Preempted, UserError
from ablatio.storage.folder_lock import own
from ablatio.training.run_folder import LOCK, discard_empty


@pytest.mark.parametrize("held", [[], ["kept.txt"]])
def test_empty_run_folder_is_removed_with_its_empty_parent(held: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    for name in held:
        (folder.parent / name).touch()
    with pytest.raises(KeyboardInterrupt), discard_empty(folder):
        raise KeyboardInterrupt
    assert not folder.exists() and folder.parent.exists() == bool(held)


def test_run_folder_in_use_or_with_a_file_stays(tmp_path: Path) -> None:
    with own(tmp_path / LOCK), pytest.raises(UserError), discard_empty(tmp_path):
        raise UserError("x")
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError), discard_empty(tmp_path):
        raise UserError("x")
    assert (tmp_path / LOCK).exists() and (tmp_path / "config.json").exists()


def test_study_without_a_run_is_removed_unless_it_was_there_or_interrupted(tmp_path: Path) -> None:
    def fail(folder: Path, error: Exception, *, run: bool = False) -> bool:
        with pytest.raises(type(error)), _discard_unstarted(folder):
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            if run:
                (folder / "runs" / "a").mkdir(parents=True)
                (folder / "runs" / "a" / "log.txt").touch()
            raise error
        return folder.exists()

    assert not fail(tmp_path / "out" / "a", EnvironmentFault("no cluster")) and not (tmp_path / "out").exists()
    assert fail(tmp_path / "b", EnvironmentFault("no cluster"), run=True)
    assert fail(tmp_path / "c", Preempted("SIGTERM came"))
    (tmp_path / "d").mkdir()
    assert fail(tmp_path / "d", EnvironmentFault("no cluster"))


@pytest.mark.parametrize(
    "words",
    [
        ["norm=rmsnorm,layernorm", "source.path=gone.txt"],
        ["source.path=gone.txt,there.txt"],
        ["optimizer.lr=interval(1e-4,1e-2)", "design=random", "design.runs=2", "source.path=gone.txt"],
        ["optimizer.lr=interval(1e-4,1e-2)", "design=halving", "source.path=gone.txt"],
    ],
)
def test_a_missing_file_is_found_before_the_arms_are_shown(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.txt").write_text("Some text.", encoding="utf-8")
    assert main(["train", "-m", "source=text", "train.steps=4", *words]) == 2
    said = capsys.readouterr()
    assert "source.path: there is no file gone.txt" in said.err and "arm" not in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


def test_logger_without_its_key_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["train", "size=tiny", "logger=wandb", "logger.wandb.mode=online"]) == 2
    assert "wandb login" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_titles_of_results_are_whole_where_they_fit() -> None:
    arms = [{"optimizer.lr": v, "norm": n} for v in ("0.1", "0.2") for n in ("rmsnorm", "layernorm")]
    labels = [" ".join(f"{k}={v}" for k, v in arm.items()) for arm in arms]
    jobs = [SimpleNamespace(id=x, label=x, arm=a, title=f"{x} seed=1") for x, a in zip(labels, arms, strict=True)]
    results = [SimpleNamespace(job=job) for job in jobs]
    assert _titles(results, 60) == {x: f"{x} seed=1" for x in labels}  # type: ignore[arg-type]
    assert [*_titles(results, 30).values()][:2] == ["lr=0.1 rmsnorm seed=1", "lr=0.1 layernorm seed=1"]  # type: ignore
