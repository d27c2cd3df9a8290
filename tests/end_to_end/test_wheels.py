"""The example plugin as a user gets it: built as a wheel, installed into a new venv, listed, checked, trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.venvs import Venv

import ablatio
from ablatio.cli.scaffold.plugin import new_plugin
from ablatio.errors import UserError

ROOT = Path(__file__).parents[2]
TINY = ["size=tiny", "train.steps=3", "data.val_tokens=256", "tokenizer=bytes", "source=text", "trainer.progress=false"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    made = Venv(tmp_path_factory.mktemp("wheels"))
    made.install(ROOT / "plugins" / "example")
    return made


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("All happy families are alike; each unhappy family is unhappy in its own way.\n" * 200)
    return f"source.path={path}"


def test_plugin_is_installed_in_the_venv_only(fresh):
    where = fresh("-c", "import ablatio_example; print(ablatio_example.__file__)").stdout
    assert str(fresh.home) in where
    here = subprocess.run([sys.executable, "-c", "import ablatio_example"], capture_output=True, check=False)
    assert here.returncode != 0, "the example is installed in this environment too, which would hide a broken wheel"


def test_parts_are_listed_with_their_distribution(fresh):
    parts = json.loads(fresh.ablatio("list", "--json"))
    text = json.dumps(parts)
    assert all(name in text for name in ("l1norm", "gaussian", "dpop", "lora_xs", "distinct", "ablatio-example"))
    shown = fresh.ablatio("show", "norm=l1norm")
    assert "ablatio-example 0.1.0" in shown and "norm.eps" in shown and "arXiv:1803.01814" in shown


def test_check_command_passes(fresh):
    report = fresh.ablatio("check", "ablatio-example")
    parts = ("norm=l1norm", "position=gaussian", "alignment=dpop", "peft=lora_xs", "reward=distinct")
    tried = (*parts, "experiment=example", "experiment=aligned")
    assert {line.split()[0] for line in report.splitlines() if "=" in line.split(" ")[0]} == set(tried)
    assert f"{len(tried) + 1} of {len(tried) + 1} keep their contract" in report


def test_plugin_tests_pass(fresh):
    tests = ROOT / "plugins" / "example" / "tests"
    chosen = "l1norm_of or gaussian_is or dpop_is or falls or lora_xs_ or distinct_counts"
    run = fresh("-m", "pytest", "-p", "no:cacheprovider", "-W", "error", str(tests), "-k", chosen)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout


def test_plugin_parts_can_be_swept(fresh, book, tmp_path):
    axes = ["norm=rmsnorm,l1norm", "position=rope,gaussian"]
    fresh.ablatio("train", "-m", *axes, *TINY, book, f"out={tmp_path}", "name=study")
    arms = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("study/runs/*/config.json"))]
    assert {(a["norm"]["name"], a["position"]["name"]) for a in arms} == {
        ("rmsnorm", "rope"),
        ("rmsnorm", "gaussian"),
        ("l1norm", "rope"),
        ("l1norm", "gaussian"),
    }
    assert len(list(tmp_path.glob("study/runs/*/summary.json"))) == 4


PAIRS = [
    {"prompt": f"{a} + {b} =", "chosen": f" {a + b}, and no more", "rejected": f" {a * b + 1} or so"}
    for a in range(8) for b in range(8)
]  # fmt: skip


def test_plugin_alignment_and_adapter_train(fresh, tmp_path):
    """The alignment in a single run, then alignment and adapter against built-in ones in one sweep."""
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    data = ["source=feedback", f"source.path={tmp_path / 'pairs.jsonl'}", "tokenizer=bytes", "data.val_fraction=0.3"]
    short = ["size=tiny", "train.steps=3", "train.val_every=null", "trainer.progress=false", f"out={tmp_path}"]
    fresh.ablatio("train", "task=preference", "alignment=dpop", *data, *short, "name=alone")
    fresh.ablatio("train", "-m", "experiment=aligned", "alignment=dpo,dpop", "peft=lora,lora_xs", *data, *short,
                  "name=study")  # fmt: skip
    runs = [tmp_path / "alone", *sorted(tmp_path.glob("study/runs/*"))]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert {(c["alignment"]["name"], c["peft"]["name"]) for c in configs} == {
        ("dpop", "none"), ("dpo", "lora"), ("dpop", "lora"), ("dpo", "lora_xs"), ("dpop", "lora_xs"),
    }  # fmt: skip
    for run, config in zip(runs, configs, strict=True):
        assert json.loads((run / "summary.json").read_text())["status"] == "done"
        logged = (run / "metrics.csv").read_text().splitlines()[0]
        assert ("train/fallen" in logged) == (config["alignment"]["name"] == "dpop")
        parts = json.loads((run / "manifest.json").read_text())["code"]["parts"]
        ours = any("ablatio-example" in part["distribution"] for part in parts.values())
        assert ours == (config["alignment"]["name"] == "dpop" or config["peft"]["name"] == "lora_xs")


@pytest.mark.long
def test_new_plugin_installs_and_passes_its_suite(fresh, tmp_path):
    place = new_plugin("my-Norms", tmp_path)
    fresh.install(place)
    assert "3 of 3 keep their contract" in fresh.ablatio("check", "my-norms")  # the part, the experiment, the whole
    run = fresh("-m", "pytest", "-p", "no:cacheprovider", "-k", "largest_entry or keeps_shape", cwd=place)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout


@pytest.mark.long
def test_experiment_trains_despite_broken_plugins(fresh, book, tmp_path):
    fresh.install(ROOT / "tests" / "helpers" / "plugins" / "broken")
    command = ["train", "experiment=example", *TINY, book, f"out={tmp_path}", "name=one"]
    run = fresh("-m", "ablatio.cli", *command, ABLATIO_PLUGIN_SECONDS="12")
    assert run.returncode == 0, run.stderr
    left_out = ("plugin exits", "plugin raises", "norm=rmsnorm", "plugin sleeps", "YAML files,", "norm=untyped")
    for what in left_out:
        assert f"{what} of ablatio-broken 0.1.0 is left out" in run.stdout + run.stderr
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["norm"]["name"], config["position"]["name"]) == ("l1norm", "gaussian")
    assert (tmp_path / "one" / "summary.json").exists()
    assert "ablatio-example" in (tmp_path / "one" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("name", "reason", "command"),
    [
        ("", "is not a valid distribution name", "my-norms"),
        ("../up", "is not a valid distribution name", "my-up"),
        ("a b", "is not a valid distribution name", "my-a-b"),
        ("x" * 65, "is not a valid distribution name", "my-" + "x" * 50),
        ("a\n", "is not a valid distribution name", "my-a"),
        ("größe", "is not a valid distribution name", "my-gr-e"),
        ("class", "not a valid name in Python", "my-class"),
        ("3norms", "not a valid name in Python", "my-3norms"),
        ("json", "already installed", "my-json"),
        ("torch", "already installed", "my-torch"),
        ("rmsnorm", f"ablatio {ablatio.__version__} already registers", "my-rmsnorm"),
    ],
)
def test_new_plugin_rejects_invalid_names(tmp_path, name, reason, command):
    with pytest.raises(UserError, match=reason) as caught:
        new_plugin(name, tmp_path)
    assert str(caught.value).endswith(f"try: ablatio new-plugin {command}")
    assert not list(tmp_path.iterdir())
    new_plugin(command, tmp_path)  # the suggested command works


def test_new_plugin_does_not_overwrite(tmp_path):
    (tmp_path / "my-norms").mkdir()
    with pytest.raises(UserError, match="already exists"):
        new_plugin("my-norms", tmp_path)
    assert not list((tmp_path / "my-norms").iterdir())
