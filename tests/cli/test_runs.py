"""`ablatio runs`: what is listed, in which order, and what is removed and what never."""

import json
import sys
from pathlib import Path

import pytest
from helpers.studies import Fake, write_study

from ablatio.cli.main import main
from ablatio.storage.folder_lock import own
from ablatio.training.run_folder import LOCK

AXES = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, seeds=(1,), effects={"norm=layernorm": 0.3}, steps=100)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs, a diverged one, one that was interrupted, and a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    states = {("norm=none", None): "diverged", ("norm=dyt", None): "running"}
    axes = {"norm": ["rmsnorm", "layernorm", "none", "dyt"]}
    made = write_study(tmp_path / "made", Fake(axes=axes, seeds=(1,), states=states, effects=AXES.effects, steps=100))
    (tmp_path / "runs").mkdir()
    for run in (made / "runs").iterdir():
        name = json.loads((run / "config.json").read_text())["norm"]["name"]
        run.rename(tmp_path / "runs" / name)
    study = write_study(tmp_path / "runs" / "study", AXES)
    lines = [{"job": p.stem, "state": "done"} for p in sorted((study / "jobs").glob("*.json"))]
    from ablatio.sweep.ledger import Ledger

    Ledger(study / "ledger.jsonl").plan([str(line["job"]) for line in lines])
    return tmp_path / "runs"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["runs", *arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def names(found: list[dict[str, object]]) -> list[str]:
    return [Path(str(e["folder"])).name for e in found]


def test_list_sort_and_filter(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {Path(str(e["folder"])).name: e for e in listed(capsys)}
    assert {n: (e["kind"], e["state"]) for n, e in found.items()} == {
        "rmsnorm": ("run", "done"), "layernorm": ("run", "done"), "none": ("run", "diverged"),
        "dyt": ("run", "interrupted"), "study": ("study", "0 of 2 done"),
    }  # fmt: skip
    assert names(listed(capsys, "--sort", "score"))[:2] == ["rmsnorm", "layernorm"]
    assert names(listed(capsys, "--sort", "score", "--reverse"))[:2] == ["layernorm", "rmsnorm"]
    assert names(listed(capsys, "runs/study", "--sort", "score")) == ["study"]
    assert names(listed(capsys, "--sort", "norm"))[:4] == ["dyt", "layernorm", "none", "rmsnorm"]
    assert names(listed(capsys, "--filter", "norm=layernorm", "--filter", "kind=run")) == ["layernorm"]
    assert names(listed(capsys, "--filter", "state=d*", "--sort", "name")) == ["layernorm", "none", "rmsnorm"]
    assert names(listed(capsys, "--filter", "train.steps=100", "--filter", "dyt")) == ["dyt"]
    assert names(listed(capsys, "runs/study", "runs/none", "--sort", "name")) == ["none", "study"]
    assert main(["runs"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "5 entries" in text and "val/loss" in text
    assert main(["runs", "--sort", "nrom"]) == 2 and "no run has `nrom`" in capsys.readouterr().err
    assert main(["runs", "--filter", "norm=rms"]) == 0 and "no runs in runs that fit" in capsys.readouterr().out
    assert main(["runs", "nowhere"]) == 2 and "no folder nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", ["rmsnorm/config.json", "rmsnorm/summary.json", "rmsnorm/manifest.json", "study/study.json"]
)
@pytest.mark.parametrize("text", ["", "[1]", '{"status": "done"', "\0"])
def test_a_damaged_entry_says_so(runs: Path, file: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / file).write_text(text)
    found = {Path(str(e["folder"])).name: e for e in listed(capsys)}
    damaged = [name for name, e in found.items() if e["state"] == "damaged"]
    assert damaged == [file.split("/")[0]] and found[damaged[0]]["score"] is None
    with own(runs / "rmsnorm" / LOCK):
        states = {Path(str(e["folder"])).name: e["state"] for e in listed(capsys)}
    assert states["rmsnorm"] == "running"


def test_remove_asks_first_and_takes_what_was_listed(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {p.name for p in runs.iterdir()}
    assert main(["runs", "--filter", "state=diverged", "--remove"]) == 2  # no terminal
    assert "--remove --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main(["runs", "--filter", "state=diverged", "--remove"]) == 0
    assert {p.name for p in runs.iterdir()} == kept
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(["runs", "--filter", "state=diverged", "--remove"]) == 0
    assert {p.name for p in runs.iterdir()} == kept - {"none"}
    assert main(["runs", "--filter", "state=diverged", "--remove", "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_nothing_in_use_is_removed(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a run that is running, one that another starts from, the working directory, or what a link points to."""
    kept = {p.name for p in runs.iterdir()}
    with own(runs / "dyt" / LOCK):
        assert listed(capsys, "--filter", "state=running")[0]["folder"] == "runs/dyt"
        assert main(["runs", "runs/dyt", "--remove", "--yes"]) == 2
        assert "is running" in capsys.readouterr().err
    config = json.loads((runs / "layernorm" / "config.json").read_text())
    config["model"]["path"] = str(runs / "rmsnorm")
    (runs / "layernorm" / "config.json").write_text(json.dumps(config))
    assert main(["runs", "runs/rmsnorm", "--remove", "--yes"]) == 2
    assert "layernorm starts from" in capsys.readouterr().err
    with monkeypatch.context() as context:
        context.chdir(runs / "none")
        assert main(["runs", str(runs / "none"), "--remove", "--yes"]) == 2
    assert "working directory" in capsys.readouterr().err
    assert {p.name for p in runs.iterdir()} == kept
    outside = runs.parent / "outside"
    (runs / "none").rename(outside)
    (runs / "none").symlink_to(outside)
    (runs / "dyt" / "checkpoints").symlink_to(outside)
    assert "none" not in names(listed(capsys))
    assert main(["runs", "runs/rmsnorm", "runs/layernorm", "runs/dyt", "--remove", "--yes"]) == 0
    assert {p.name for p in runs.iterdir()} == {"study", "none"} and (outside / "config.json").exists()


def test_no_runs_yet_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0 and capsys.readouterr().out == "no runs in runs\n"
