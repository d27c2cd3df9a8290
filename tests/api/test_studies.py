"""`ablatio.run_study` and `ablatio.open_study`: the command line's runs, as frames, words and a page."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import ablatio as command
from helpers.runs import metrics
from helpers.studies import ACTIVATIONS, MIXED, Fake, plackett_burman, write_study

import ablatio

WORDS = ("norm=layernorm,rmsnorm", "seed=1,2")
SCRIPT = """\
import os
import ablatio
print("begins", __name__)
study = ablatio.run_study({words}, name="study", out={out!r}, quiet=True)
print(study)
"""


@pytest.fixture(scope="module")
def study(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> "ablatio.StudyFolder":
    """Two norms with two seeds each, done."""
    return ablatio.run_study(*settings, *WORDS, name="norms", out=tmp_path_factory.mktemp("studies"), quiet=True)


def runs_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    """What each run of a study has logged, by its id."""
    return {run.name: metrics(run) for run in sorted((folder / "runs").iterdir())}


def test_a_study_has_the_digits_of_the_command(
    study: "ablatio.StudyFolder", settings: tuple[str, ...], tmp_path: Path
) -> None:
    done = command(["train", "-m", *settings, *WORDS, "name=norms", f"out={tmp_path}", "table=0"], tmp_path / "log")
    assert done.code == 0, done.err
    assert study.folder.name == "norms" and len(runs_of(study.folder)) == 4
    assert runs_of(study.folder) == runs_of(tmp_path / "norms")


def test_a_study_as_frames(study: "ablatio.StudyFolder") -> None:
    opened = ablatio.open_study(str(study.folder))
    runs = opened.runs()
    assert list(runs["norm"]) == ["layernorm", "layernorm", "rmsnorm", "rmsnorm"] and list(runs["seed"]) == [1, 2] * 2
    assert set(runs["state"]) == {"done"}
    for _, row in runs.iterrows():
        assert ablatio.open_run(row["folder"]).summary["val/loss"] == row["val/loss"]
    pairs = opened.comparisons()
    means = runs.groupby("norm")["val/loss"].mean()
    assert len(pairs) == 1
    assert pairs.loc[0, "difference"] == pytest.approx(means[pairs.loc[0, "a"]] - means[pairs.loc[0, "b"]])
    assert pairs.loc[0, "low"] < pairs.loc[0, "difference"] < pairs.loc[0, "high"] and pairs.loc[0, "n"] == 2
    assert pairs.loc[0, "sentence"] == opened.verdict.sentences[0].text
    arms = opened.arms(metric="val/bpb")
    assert arms["val/bpb"].is_monotonic_increasing and list(arms["n"]) == [2, 2]
    assert "2 arms, runs: 4 done" in repr(opened)


def test_the_report_is_the_commands(study: "ablatio.StudyFolder", tmp_path: Path) -> None:
    page = study.report(out=tmp_path / "ours", baseline="norm=rmsnorm")
    assert page == tmp_path / "ours/report.html" and page.read_text().startswith("<!doctype html>")
    words = ["report", str(study.folder), "--out", str(tmp_path / "theirs"), "--baseline", "norm=rmsnorm"]
    done = command(words, tmp_path / "log")
    assert done.code == 0, done.err
    for name in ("results.csv", "costs.csv", "report.md"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    assert study.report() == study.folder / "report/report.html"


def test_the_verdict_is_words_and_objects(tmp_path: Path) -> None:
    found = ablatio.open_study(write_study(tmp_path / "activations", ACTIVATIONS)).verdict
    assert "swiglu" in found.headline and str(found).splitlines()[0] == found.headline
    assert found.resolved and all(s.pair.better for s in found.resolved)
    assert len(found.sentences) == 5
    assert len(str(found).splitlines()) == 1 + 5 + len(found.notes)
    one = ablatio.open_study(write_study(tmp_path / "one", Fake(axes={"norm": ["rmsnorm"]}))).verdict
    assert one.headline == "Only one arm: nothing to compare it with." and not one.sentences


def test_a_screening_and_lost_runs_are_told_too(tmp_path: Path) -> None:
    screening = ablatio.open_study(write_study(tmp_path / "screening", plackett_burman()))
    assert "settings stand out" in screening.verdict.headline and screening.comparisons().empty
    mixed = ablatio.open_study(write_study(tmp_path / "mixed", MIXED))
    lost = mixed.runs().query("state == 'diverged'")
    assert len(lost) == 3 and lost["why"].str.contains("diverged").all()
    assert list(mixed.comparisons(baseline="norm=none position=none")["b"].unique()) == ["norm=none position=none"]


def test_a_study_of_which_nothing_is_done_says_so(tmp_path: Path) -> None:
    planned = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, states={("norm=rmsnorm", None): "planned",
                                                                   ("norm=layernorm", None): "planned"})  # fmt: skip
    study = ablatio.open_study(write_study(tmp_path / "planned", planned))
    assert "nothing to compare" in str(study.verdict) and study.comparisons().empty


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["script", "standard input"])
def test_a_study_needs_no_main_guard(how: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    """The server of the runs is spawned here, for torch has two threads: it must not run the program once more."""
    words = ", ".join(map(repr, (*settings, "train.steps=1", "norm=layernorm,rmsnorm")))
    code = "import torch\ntorch.set_num_threads(2)\n" + SCRIPT.format(words=words, out=str(tmp_path))
    (tmp_path / "script.py").write_text(code)
    arguments = ["script.py"] if how == "script" else ["-"]
    done = subprocess.run(
        [sys.executable, *arguments], input=code, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "begins __main__" and done.stdout.count("begins") == 1
    assert "runs: 2 done" in done.stdout


def test_a_study_leaves_the_environment_alone_and_is_resumed(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = dict(os.environ)
    failing = (*settings, "train.steps=3", "optimizer.lr=0.001,1e30", "stabilizer=[]", "optimizer=sgd")
    with pytest.raises(ablatio.SweepFailed, match=r"(?s)1 of 2 runs failed.*retry=failed"):
        ablatio.run_study(*failing, name="study", out=tmp_path, quiet=True)
    assert dict(os.environ) == before and capfd.readouterr() == ("", "")
    study = ablatio.open_study(tmp_path / "study")
    assert sorted(study.runs()["state"]) == ["diverged", "done"]
    with pytest.raises(ablatio.SweepFailed, match="1 of 2 runs failed"):  # nothing is open, and it says so again
        ablatio.resume_study(study.folder, quiet=True)
    with pytest.raises(ablatio.UserError, match="a study that is resumed keeps its settings"):
        ablatio.resume_study(study.folder, "seed=3")
    with pytest.raises(ablatio.UserError, match="is no study"):
        ablatio.resume_study(tmp_path)


@pytest.mark.parametrize(
    "words", [("norm=rmsnrom,layernorm",), ("norm=layernorm,rmsnorm", "design=nothing"), ("launcher=nowhere",)]
)
def test_wrong_settings_raise_the_error_of_the_command_line(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ablatio.ConfigError) as raised:
        ablatio.run_study(*words, out=tmp_path, quiet=True)
    assert command(["train", "-m", *words], tmp_path / "log").err == f"ablatio: {raised.value}\n"


def test_a_folder_without_runs_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ablatio.UserError, match="holds no runs"):
        ablatio.open_study(tmp_path)


def test_the_files_need_no_pandas(study: "ablatio.StudyFolder", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (study.runs, study.arms, study.comparisons):
        with pytest.raises(ablatio.UserError, match=r"pip install 'ablatio\[notebook\]'"):
            table()
    page = study.report()
    with (page.parent / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
