"""An exported folder loads in a process that never imports ablatio, by the entry point that torch calls."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.runs import TINY

import ablatio
from ablatio.cli.main import main

ROOT = Path(__file__).parents[2]
GROUP = "torch.backends"
ORDERS = {
    "transformers": "from transformers import AutoModelForCausalLM",
    "torch first": "import torch\nfrom transformers import AutoModelForCausalLM",
    "table before torch": "import transformers.models.auto.configuration_auto\nfrom transformers import "
    "AutoModelForCausalLM",
}
LOAD = """
import json, sys
early = [m for m in sys.modules if m.startswith(("hydra", "ablatio_std", "ablatio.model", "ablatio.config"))]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
import torch
logits = model(torch.arange(8)[None]).logits
made = model.generate(torch.arange(8)[None], max_new_tokens=3, do_sample=False)
print(json.dumps([type(model).__name__, early, logits.sum().item(), made.tolist()]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in ablatio's own class: no class of transformers has these parts."""
    folder = tmp_path_factory.mktemp("export")
    text = folder / "text.txt"
    text.write_text("\n\n".join("the people want peace and work " * 9 + str(n) for n in range(40)))
    words = [*TINY, f"source.path={text}", "norm=dyt", "position=alibi", "train.steps=2", "name=run"]
    ablatio.train(*words, out=folder, quiet=True)
    assert main(["export", str(folder / "run"), "--to", str(folder / "out")]) == 0
    assert json.loads((folder / "out" / "config.json").read_text())["model_type"] == "ablatio"
    return folder / "out"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path with the entry point of pyproject.toml, as pip installs it."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    folder = tmp_path_factory.mktemp("site")
    made = folder / "ablatio_entry-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: ablatio-entry\nVersion: 1\n")
    (made / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *(f"{k} = {v}" for k, v in points.items()), ""]))
    return folder


def child(code: str, folder: Path, site: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([*(str(ROOT / p) for p in ("core", "plugins")), str(site)])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("order", [pytest.param(n, marks=pytest.mark.long if "first" in n else ()) for n in ORDERS])
def test_folder_loads_without_an_import_of_ablatio(order: str, exported: Path, installed: Path) -> None:
    done = child(ORDERS[order] + LOAD, exported, installed)
    assert done.returncode == 0, done.stderr
    name, early, total, made = json.loads(done.stdout.splitlines()[-1])
    assert name == "AblatioForCausalLM" and early == [], "before a model is loaded, only its config class is imported"
    import torch

    from ablatio.interop.transformers_model import load

    model = load(exported).train(False)
    assert total == pytest.approx(model(torch.arange(8)[None]).logits.sum().item(), abs=1e-4)
    assert made == model.generate(torch.arange(8)[None], max_new_tokens=3, do_sample=False).tolist()


def test_an_error_of_the_hook_never_reaches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the hook is set once, however often it is called."""
    from ablatio.interop import autoload

    def broken() -> bool:
        raise ImportError("no transformers")

    with monkeypatch.context() as context:
        context.setattr(autoload, "register", broken)
        autoload.autoload()
    monkeypatch.setattr(sys, "modules", {n: m for n, m in sys.modules.items() if n != autoload.TABLE})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    autoload.autoload()
    autoload.autoload()
    assert sum(isinstance(finder, autoload.AfterTable) for finder in sys.meta_path) == 1


@pytest.mark.slow
def test_folder_that_refers_to_code_is_refused_without_an_import_of_ablatio(
    exported: Path, installed: Path, tmp_path: Path
) -> None:
    settings = json.loads((exported / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "evil.Evil"}
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text("raise SystemExit(77)")
    done = child(ORDERS["transformers"] + LOAD, tmp_path, installed)
    assert done.returncode == 1 and "only installed code is run" in done.stderr
