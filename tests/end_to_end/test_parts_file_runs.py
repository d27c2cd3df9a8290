"""Runs and studies with a file of parts: the user names it each time, its digest is compared, nothing else runs it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.runs import TINY, Finished
from helpers.runs import ablatio as command

TEXT = "\n\n".join(" ".join(f"word{(i * (i + n)) % 23}" for i in range(40)) for n in range(40))
PARTS = '''\
import os
import torch
from torch import nn

from ablatio import norms

with open(os.environ["EXECUTED"], "a") as log:
    log.write("x")


@norms.register("halved", paper="arXiv:0000.00000")
class Halved(nn.Module):
    """y = g * x / 2.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight / 2
'''
STUDY = "# A study of mine.\nsweep:\n  axes: {norm: [halved, rmsnorm], seed: [1, 2]}\ntrain: {steps: 4}\n"
QUICK = ("train.val_every=null", "train.checkpoint_every=2", "source.path=text.txt")
ONE = (*TINY, *QUICK, "train.steps=4")


@dataclass
class Desk:
    """A working directory with a file of parts, a finished run of them, and a record of how often it was executed."""

    folder: Path
    log: Path
    run: str = "runs/one"

    def __call__(self, *words: str) -> Finished:
        return command([*words], self.folder / "out")

    @property
    def executed(self) -> int:
        """Times that the file of parts was executed since the last look."""
        count = len(self.log.read_text()) if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return count

    def tried(self, done: Finished) -> list[str]:
        """The command that an error shows."""
        line = next(line for line in done.err.splitlines() if line.startswith("    try: ablatio "))
        return shlex.split(line.removeprefix("    try: ablatio "))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `one` and the finished study `two`."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "my_parts.py").write_text(PARTS)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "text.txt").write_text(TEXT)
    before = Path.cwd()
    os.chdir(folder)
    os.environ["EXECUTED"] = str(folder / "executed")
    try:
        one = command(["train", "parts=./my_parts.py", "norm=halved", *ONE, "name=one"], folder / "out")
        assert one.code == 0, one.err
        assert len((folder / "executed").read_text()) == 1
        words = ["-m", "+sweep=./study.yaml", *TINY, *QUICK, "name=two", "workers=1"]
        two = command(["train", "parts=my_parts.py", *words], folder / "out")
        assert two.code == 0, two.err
    finally:
        os.chdir(before)
        del os.environ["EXECUTED"]
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    folder = tmp_path / "desk"
    shutil.copytree(made, folder)
    (folder / "executed").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EXECUTED", str(folder / "executed"))
    return Desk(folder, folder / "executed")


def test_the_run_records_the_file_and_keeps_a_copy(made: Path) -> None:
    run = made / "runs/one"
    manifest, config = (json.loads((run / f"{name}.json").read_text()) for name in ("manifest", "config"))
    assert manifest["parts_file"]["file"] == "my_parts.py" and len(manifest["parts_file"]["sha256"]) == 64
    assert manifest["code"]["parts"]["norm/halved"]["distribution"].startswith("my_parts.py ")
    assert (run / "parts.py").read_text() == PARTS and "parts" not in config
    study = json.loads((made / "runs/two/study.json").read_text())
    assert study["parts_file"] == manifest["parts_file"] and (made / "runs/two/parts.py").read_text() == PARTS
    assert not any("parts=" in text for text in study["overrides"])
    kept = {path.parent.name: path for path in (made / "runs/two/runs").glob("*/parts.py")}
    norms = {p.parent.name: json.loads(p.read_text())["norm"]["name"] for p in made.glob("runs/two/runs/*/config.json")}
    assert {name for name, norm in norms.items() if norm == "halved"} == kept.keys() and len(kept) == 2


ON_A_RUN = {
    "evaluate": ["evaluate", "runs/one", "--tokens", "64"],
    "generate": ["generate", "runs/one", "word1 it's", "--tokens", "2"],
    "resume": ["resume", "runs/one"],
    "train resume": ["train", "resume=runs/one"],
    "export": ["export", "runs/one", "--to", "exported"],
    "start from it": [
        "train",
        "model=run",
        "model.path=runs/one",
        "source=text",
        *QUICK,
        "train.steps=1",
        "name=three",
    ],
    "resume a study": ["resume", "runs/two"],
}


@pytest.mark.matrix
@pytest.mark.parametrize("case", ON_A_RUN)
def test_a_command_on_the_run_needs_the_file_again_and_shows_how(case: str, desk: Desk) -> None:
    """The command that the refusal shows is typed: it works.  A file that was changed is refused, too."""
    words = ON_A_RUN[case]
    refused = desk(*words)
    assert refused.code == 2 and "only you may name code" in refused.err and desk.executed == 0
    again = desk.tried(refused)
    assert again == [*words, "parts=my_parts.py"]
    done = desk(*again)
    assert done.code == 0, done.err
    assert desk.executed >= 1
    Path("my_parts.py").write_text(PARTS.replace("/ 2", "/ 3"))
    changed = desk(*again)
    assert changed.code == 2 and "my_parts.py is another file or another version of it" in changed.err
    copy = desk.tried(changed)
    assert copy[-1] == f"parts={'runs/two' if 'study' in case else 'runs/one'}/parts.py"
    assert "read it before you execute it" in changed.err


def test_a_report_needs_no_code_and_shows_commands_that_name_it(desk: Desk) -> None:
    done = desk("report", "runs/two")
    assert done.code == 0, done.err
    assert desk.executed == 0
    lines = Path("runs/two/report/report.md").read_text().splitlines()
    arm = next(line for line in lines if "norm=halved" in line and "ablatio train -m" in line)
    assert "parts=my_parts.py" in arm and not any("parts=" in line for line in lines if "norm=rmsnorm seed" in line)
    assert desk("report", "runs/two", "parts=my_parts.py").code == 0
    assert desk("report", "runs/one").code == 0


def test_a_killed_study_is_resumed_elsewhere_with_what_was_kept(desk: Desk, tmp_path: Path) -> None:
    """In another folder, without the YAML: the copy in the study stands for it; the parts are named by the user."""
    ledger = Path("runs/two/ledger.jsonl")
    whole = sorted(p.parent.name for p in Path("runs/two/runs").glob("*/summary.json"))
    lost = next(Path("runs/two/runs").glob("*/parts.py")).parent.name
    kept = [line for line in ledger.read_text().splitlines(keepends=True) if lost not in line]
    ledger.write_text("".join(kept))
    shutil.rmtree(f"runs/two/runs/{lost}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("text.txt", elsewhere)
    os.chdir(elsewhere)
    place = str(desk.folder / "runs/two")
    done = desk("resume", place, f"parts={place}/parts.py")
    assert done.code == 0, done.err
    assert desk.executed >= 1
    assert sorted(p.parent.name for p in Path(place, "runs").glob("*/summary.json")) == whole


def attack_config(desk: Desk, words: dict[str, object]) -> None:
    path = Path(desk.run, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | words))


ATTACKS: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "experiment": (["train", "+experiment=./evil.yaml", *ONE], {"evil.yaml": "parts: ./my_parts.py\n"}),
    "folder": (["train", "+experiment=evil", *ONE], {"conf/experiment/evil.yaml": "parts: ./my_parts.py\n"}),
    "preset": (["train", "preset=./evil.yaml", *ONE], {"evil.yaml": "parts: ./my_parts.py\nnorm: halved\n"}),
    "study": (["train", "-m", "+sweep=./evil.yaml", *ONE], {"evil.yaml": "parts: x.py\nsweep: {axes: {seed: [1]}}\n"}),
    "axis of a study": (
        ["train", "-m", "+sweep=./evil.yaml", *ONE],
        {"evil.yaml": "sweep: {axes: {parts: [./my_parts.py], norm: [rmsnorm, halved]}}\n"},
    ),
    "recipe": (
        ["train", "recipe=./evil.yaml", "train.steps=1"],
        {"evil.yaml": "overrides: [parts=./my_parts.py]\nstages: [{stage: a, overrides: [size=tiny]}]\n"},
    ),
    "stage": (
        ["train", "recipe=./evil.yaml", "train.steps=1"],
        {"evil.yaml": "stages: [{stage: a, overrides: [size=tiny, +parts=./my_parts.py]}]\n"},
    ),
    "setting": (["train", "+parts=./my_parts.py", "norm=halved", *ONE], {}),
    "setting of a stage": (["train", "recipe=instructgpt", "stages.sft.parts=./my_parts.py"], {}),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_nothing_but_the_user_names_code(case: str, desk: Desk) -> None:
    words, files = ATTACKS[case]
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = desk(*words)
    assert done.code == 2 and "parts" in done.err and "Traceback" not in done.err, done.err
    assert desk.executed == 0


@pytest.mark.matrix
@pytest.mark.parametrize("key", ["parts", "parts_file", "plugins"])
def test_the_config_of_a_run_names_no_code(key: str, desk: Desk) -> None:
    attack_config(desk, {key: {"file": "my_parts.py"} if key == "parts_file" else "my_parts.py"})
    Path(desk.run, "manifest.json").unlink()  # nothing that asks for the file
    for words in (["evaluate", desk.run], ["resume", desk.run], ["train", "model=run", f"model.path={desk.run}", *ONE]):
        done = desk(*words)
        assert done.code in (2, 5) and "Traceback" not in done.err, done.err
        assert desk.executed == 0


def test_the_folder_of_a_study_names_no_code(desk: Desk) -> None:
    path = Path("runs/two/study.json")
    study = json.loads(path.read_text())
    path.write_text(json.dumps(study | {"overrides": [*study["overrides"], "parts=my_parts.py"], "parts_file": {}}))
    done = desk("resume", "runs/two")
    assert done.code == 2 and "names a file of code" in done.err, done.err
    assert desk.executed == 0
    path.write_text(json.dumps(study | {"parts_file": {"file": "/tmp/x.py; rm", "sha256": "0" * 64}}))
    done = desk("resume", "runs/two")
    assert done.code == 2 and "parts=FILE.py" in done.err and desk.executed == 0


def test_a_changed_copy_is_neither_executed_nor_shown(desk: Desk) -> None:
    Path("my_parts.py").unlink()
    Path(desk.run, "parts.py").write_text(PARTS + "# and more\n")
    done = desk("evaluate", desk.run)
    assert done.code == 2 and "neither my_parts.py nor the copy" in done.err and desk.executed == 0
    named = desk("evaluate", desk.run, f"parts={desk.run}/parts.py")
    assert named.code == 2 and "another file or another version" in named.err


@pytest.mark.matrix
@pytest.mark.parametrize("command_", ["list", "show", "size"])
def test_looking_at_parts_of_a_file(command_: str, desk: Desk) -> None:
    words = {"list": ["norm"], "show": ["norm=halved"], "size": ["norm=halved", "size=tiny"]}[command_]
    done = desk(command_, *words, "parts=my_parts.py")
    assert done.code == 0, done.err
    assert ("my_parts.py" in done.out) == (command_ != "size") and desk.executed == 1


RECIPE = "overrides: [norm=halved]\nstages:\n  - {stage: a, overrides: []}\n  - {stage: b, overrides: [seed=2]}\n"


@pytest.mark.long
def test_a_recipe_is_resumed_with_its_files(desk: Desk) -> None:
    """Its YAML from the copy, its parts from the file that the user names again."""
    Path("two.yaml").write_text(RECIPE)
    begun = desk("train", "recipe=./two.yaml", "parts=my_parts.py", *ONE, "name=rec")
    assert begun.code == 0, begun.err
    Path("two.yaml").unlink()
    shutil.rmtree("runs/rec/02-b")
    for _ in range(2):  # the second one has nothing left to do
        refused = desk("resume", "runs/rec")
        assert refused.code == 2 and desk.tried(refused) == ["resume", "runs/rec", "parts=my_parts.py"]
        done = desk(*desk.tried(refused))
        assert done.code == 0, done.err
    assert json.loads(Path("runs/rec/02-b/summary.json").read_text())["status"] == "done"


@pytest.mark.long
def test_an_edited_file_runs_anew_only_what_it_changes(desk: Desk) -> None:
    words = ["train", "-m", "parts=my_parts.py", "norm=halved,rmsnorm", *ONE, "name=edited"]
    assert desk(*words).code == 0
    before = {path.parent.name: path.stat().st_mtime_ns for path in Path("runs/edited/runs").glob("*/summary.json")}
    Path("my_parts.py").write_text(PARTS.replace("/ 2", "/ 4"))
    assert desk("resume", "runs/edited", "parts=my_parts.py").code == 2  # what is resumed stays as it was
    assert desk(*words).code == 0
    after = {path.parent.name: path.stat().st_mtime_ns for path in Path("runs/edited/runs").glob("*/summary.json")}
    assert before.items() < after.items() and len(after) == len(before) + 1
    assert "/ 4" in Path("runs/edited/parts.py").read_text()


@pytest.mark.long
@pytest.mark.parametrize("good", [True, False])
def test_check_runs_the_contract_suites_on_the_file(good: bool, desk: Desk) -> None:
    text = PARTS.replace('with open(os.environ["EXECUTED"], "a") as log:\n    log.write("x")\n', "")
    Path("my_parts.py").write_text(text if good else text.replace("* self.weight / 2", "* 0.5"))  # the knob is dead
    words = [sys.executable, "-m", "ablatio.cli", "check", "parts=my_parts.py"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if good else 2), done.stdout
    assert ("\n2 of 2 keep their contract: " if good else "norm=halved: BROKEN") in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["pool", "slurm"])
def test_a_person_types_the_commands(launcher: str, desk: Desk) -> None:
    """Fresh interpreters, as in a shell: a study on each launcher of this machine, and its report."""

    def typed(*words: str) -> str:
        command = [sys.executable, "-m", "ablatio.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if launcher == "slurm":
        pytest.importorskip("submitit")
    more = ["launcher=slurm", "launcher.cluster=local"] if launcher == "slurm" else []
    words = ["norm=halved,rmsnorm", *ONE, "name=typed", *more]
    typed("train", "-m", "parts=./my_parts.py", *words)
    assert len(list(Path("runs/typed/runs").glob("*/summary.json"))) == 2
    assert "halved" in typed("report", "runs/typed")
    assert typed("resume", "runs/typed", "parts=my_parts.py")
