"""Parts that a notebook or a script defines: single runs take them, studies say why not, and later sessions too."""

import json
import linecache
import os
import subprocess
from pathlib import Path

import pytest
from helpers import warm_python

import ablatio

CELL = '''\
import torch
from torch import nn

import ablatio


@ablatio.norms.register("halved", paper="arXiv:0000.00000")
class Halved(nn.Module):
    """y = g * x / 2.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight / 2
'''
CLASS = CELL[CELL.index("@ablatio") :]
NOTEBOOK = """\
import linecache, sys
cell, name = {cell!r}, "<ipython-input-1-abc>"
linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)  # as IPython keeps the text of its cells
exec(compile(cell, name, "exec"), globals())
"""
TRAIN = """
run = ablatio.train({settings}, "norm=halved", "norm.gain=0.5", name="run", out={out!r}, quiet=True)
print(run.config["norm"]["gain"], run.summary["status"], run.generate("the", tokens=3)[:3])
"""


def python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter: from standard input, or as the arguments say."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm_python.run(arguments or ("-",), input="" if arguments else code, env=environment, cwd=folder)


def told(settings: tuple[str, ...], out: Path) -> str:
    return TRAIN.format(settings=", ".join(map(repr, settings)), out=str(out))


@pytest.fixture(scope="module")
def notebook(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose norm was defined in a cell of a notebook."""
    folder = tmp_path_factory.mktemp("notebook")
    done = python(NOTEBOOK.format(cell=CELL) + told(settings, folder), folder)
    assert done.stdout == "0.5 done the\n", done.stderr
    return folder / "run"


def test_a_part_of_a_cell_trains_and_its_source_is_kept(notebook: Path) -> None:
    part = json.loads((notebook / "manifest.json").read_text())["code"]["parts"]["norm/halved"]
    assert part["distribution"] == "this session" and part["source"] == CLASS
    others = json.loads((notebook / "manifest.json").read_text())["code"]["parts"]
    assert "source" not in others["position/rope"]  # its distribution keeps it


def test_a_part_of_standard_input_trains_and_the_manifest_says_that_its_source_is_gone(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    done = python(CELL + told((*settings, "train.steps=1"), tmp_path), tmp_path)
    assert " done " in done.stdout, done.stderr
    part = json.loads((tmp_path / "run/manifest.json").read_text())["code"]["parts"]["norm/halved"]
    assert part == {"distribution": "this session", "sha256": "", "source": None}


def test_a_part_of_a_script_trains_and_its_source_is_kept(settings: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CELL + told((*settings, "train.steps=1"), tmp_path))
    done = python("", tmp_path, "script.py")
    assert " done " in done.stdout, done.stderr
    part = json.loads((tmp_path / "run/manifest.json").read_text())["code"]["parts"]["norm/halved"]
    assert part["source"] == CLASS and len(part["sha256"]) == 64


@pytest.mark.parametrize("command", ["generate", "evaluate", "resume"])
def test_another_session_says_what_is_missing(notebook: Path, command: str) -> None:
    with pytest.raises(ablatio.UserError) as raised:
        ablatio.open_run(notebook)
    for part in ("norm=halved is not registered here", "defined in the session that trained", "manifest.json", "try: "):
        assert part in str(raised.value)
    done = python("", notebook.parent, "-m", "ablatio.cli", command, str(notebook))
    assert done.returncode == 2 and done.stderr == f"ablatio: {raised.value}\n"


def test_a_part_of_a_plugin_that_is_gone_names_its_distribution(run: "ablatio.RunFolder", tmp_path: Path) -> None:
    config, manifest = run.config, run.manifest
    lost = {**config, "norm": {"name": "gone"}}
    parts = {"norm/gone": {"distribution": "my-norms 1.2", "sha256": "0" * 64}}
    (tmp_path / "config.json").write_text(json.dumps(lost))
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "code": {**manifest["code"], "parts": parts}}))
    with pytest.raises(ablatio.UserError, match=r"(?s)came from my-norms 1\.2\n.*pip install 'my-norms==1\.2'"):
        ablatio.open_run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ablatio.UserError, match="nothing says where it came from"):
        ablatio.open_run(tmp_path)


STUDY = """
for words in (
    ("norm=halved,rmsnorm",), ("norm=halved", "seed=1,2"), ("norm=halved", "design=tpe", "optimizer.lr=1e-3,1e-2"),
):
    try:
        ablatio.run_study({settings}, *words, name="study", out={out!r}, quiet=True)
    except ablatio.UserError as error:
        print(error)
"""


def test_a_study_refuses_a_part_of_the_session_and_names_the_command_for_a_plugin(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    asked = STUDY.format(settings=", ".join(map(repr, settings)), out=str(tmp_path / "runs"))
    done = python(CELL + asked, tmp_path)
    said = done.stdout.splitlines()
    assert len(said) == 6 and len(set(said)) == 2, (done.stdout, done.stderr)
    assert "norm=halved was defined in this session" in said[0] and "other processes" in said[0]
    assert said[1].startswith("    try: ablatio.load_parts('my_norms.py')")
    assert said[1].endswith("or ablatio new-plugin my-norms")
    assert not (tmp_path / "runs/study").exists()


LOADED = """
print(ablatio.load_parts("my_norms.py"))
study = ablatio.run_study({settings}, "norm=halved,rmsnorm", "train.steps=1", name="study", out={out!r}, quiet=True)
print(len(study.findings().table.runs))
try:
    ablatio.train("parts=my_norms.py", "norm=halved")
except ablatio.UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_parts_of_a_file_that_a_session_loads_run_in_a_study(settings: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "my_norms.py").write_text(CELL)
    code = LOADED.format(settings=", ".join(map(repr, settings)), out=str(tmp_path / "runs"))
    done = python("import ablatio\n" + code, tmp_path)
    said = done.stdout.splitlines()
    assert said[:2] == ["['norm=halved']", "2"], done.stderr
    assert "may not name code" in said[2] and said[3] == "    try: ablatio.load_parts('my_norms.py'), before"
    with pytest.raises(ablatio.UserError, match=r"try: ablatio\.load_parts\('.*parts\.py'\), and the same call"):
        for folder in (tmp_path / "runs/study/runs").iterdir():
            ablatio.open_run(folder)


def test_an_export_with_such_a_part_says_so_where_it_is_loaded(notebook: Path, tmp_path: Path) -> None:
    export = f'from ablatio.cli.main import main; main(["export", {str(notebook)!r}, "--to", "out"])'
    done = python(NOTEBOOK.format(cell=CELL) + export, tmp_path)
    assert "as ablatio" in done.stdout, done.stderr
    loaded = python('import ablatio.hf\nablatio.hf.load("out")', tmp_path)
    assert "the exported model needs its parts: norm=halved is not registered here" in loaded.stderr


def test_a_cell_may_be_run_again_with_another_body(settings: tuple[str, ...], tmp_path: Path) -> None:
    again = CELL.replace("/ 2", "/ 3")
    code = NOTEBOOK.format(cell=CELL) + NOTEBOOK.format(cell=again).replace("input-1", "input-2")
    done = python(code + told((*settings, "train.steps=1"), tmp_path), tmp_path)
    assert " done " in done.stdout, done.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["code"]["parts"]["norm/halved"]["source"] == again[again.index("@ablatio") :]
    linecache.clearcache()
