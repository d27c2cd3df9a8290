"""A plugin wheel that adds a new kind: it gets everything that built-in kinds have, without changes in the core."""

import json
from pathlib import Path

import pytest
from helpers.venvs import Venv
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
SHORT = [
    "size=tiny", "train.steps=3", "data.val_tokens=256", "tokenizer=bytes", "trainer.progress=false",
    "trainer.threads=1", "seed=1",
]  # fmt: skip
SUBLAYERS = 4  # an attention and a feed-forward part in each of two layers


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    made = Venv(tmp_path_factory.mktemp("own_kind"))
    made.install(ROOT / "tests" / "helpers" / "plugins" / "own_kind")
    return made


@pytest.fixture(scope="module")
def study(fresh, tmp_path_factory):
    """Folder of a sweep over three options of the new kind and two seeds."""
    out = tmp_path_factory.mktemp("gates")
    options = ["residual_gate=none,scalar,channel", "residual_gate.start=0.25", "seed=1,2"]
    fresh.ablatio("train", "-m", *options, *SHORT[:-1], f"out={out}", "name=study")
    return out / "study"


def runs_of(study):
    """{option: config, summary and folder of the run with seed 1}."""
    found = {}
    for path in sorted(study.glob("runs/*/config.json")):
        config, summary = json.loads(path.read_text()), json.loads((path.parent / "summary.json").read_text())
        if config["seed"] == 1:
            found[config.get("residual_gate", {}).get("name", "none")] = (config, summary, path.parent)
    return found


def weights_of(run):
    """Arrays of the run's last checkpoint by parameter name."""
    (path,) = sorted(run.glob("checkpoints/*.model.safetensors"))[-1:]
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def losses(run):
    """The columns of metrics.csv that do not depend on the clock."""
    head, *rows = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    kept = [i for i, name in enumerate(head) if name.startswith(("step", "val/", "train/"))]
    return [[row[i] for i in kept] for row in rows]


def test_new_kind_is_listed_shown_and_completed(fresh):
    assert list(json.loads(fresh.ablatio("list", "residual_gate", "--json"))["residual_gate"]) == [
        "channel", "none", "scalar",
    ]  # fmt: skip
    shown = fresh.ablatio("show", "residual_gate=scalar")
    assert "residual_gate.start" in shown and "arXiv:2003.04887" in shown and "ablatio-own-kind 0.1.0" in shown
    assert "residual_gate=" in fresh.ablatio("__complete", "train", "resid").split()
    assert "residual_gate=scalar" in fresh.ablatio("__complete", "train", "residual_gate=").split()
    assert "residual_gate.start=" in fresh.ablatio(
        "__complete", "train", "residual_gate=channel", "residual_g"
    ).split() + (fresh.ablatio("__complete", "train", "residual_gate=channel", "residual_gate.").split())


def test_invalid_option_of_the_new_kind_is_rejected_with_a_suggestion(fresh):
    run = fresh("-m", "ablatio.cli", "train", "residual_gate=scaler", *SHORT)
    assert run.returncode == 2 and "residual_gate=scalar" in run.stderr
    run = fresh("-m", "ablatio.cli", "train", "residual_gate=scalar", "residual_gate.start=-1", *SHORT)
    assert run.returncode == 2 and "residual_gate.start" in run.stderr


def test_parts_pass_the_common_suites_and_the_plugins_own(fresh):
    report = fresh.ablatio("check", "ablatio-own-kind")
    rows = {line.split()[0] for line in report.splitlines() if line.startswith("residual_gate=")}
    assert rows == {"residual_gate=none", "residual_gate=scalar", "residual_gate=channel"}
    assert "4 of 4 keep their contract" in report and "warning" not in report
    here = fresh("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "ablatio_own_kind.suites",
                 "--ablatio-dist", "ablatio-own-kind")  # fmt: skip
    assert "6 passed" in here.stdout, here.stdout + here.stderr


def test_sweep_builds_trains_and_saves_the_new_parts(study):
    """Each sublayer has a part: counted as parameters, trained, and saved under the name of its kind."""
    runs = runs_of(study)
    assert set(runs) == {"none", "scalar", "channel"}
    width = runs["none"][0]["model"]["d_model"]
    count = {option: summary["parameters"] for option, (_, summary, _) in runs.items()}
    assert count["scalar"] == count["none"] + SUBLAYERS and count["channel"] == count["none"] + SUBLAYERS * width
    gates = {name: w for name, w in weights_of(runs["channel"][2]).items() if "residual_gate" in name}
    assert sorted(gates) == sorted(
        f"model.layers.{layer}.{sublayer}.residual_gate.weight"
        for layer in range(2)
        for sublayer in ("self_attn", "mlp")
    )
    assert all(w.shape == (width,) and (w != 0.25).any() and abs(w - 0.25).max() < 0.1 for w in gates.values())
    assert len({summary["val/loss"] for _, summary, _ in runs.values()}) == 3
    manifest = json.loads((runs["scalar"][2] / "manifest.json").read_text())
    assert "ablatio-own-kind" in json.dumps(manifest["code"]["parts"])


def test_report_names_the_options(fresh, study):
    output = fresh.ablatio("report", str(study))
    assert all(option in output for option in ("scalar", "channel", "none"))


@pytest.mark.long
def test_unused_kind_does_not_change_runs(fresh, study, tmp_path):
    """Results, parameter names and run id equal those of an environment without the plugin."""
    from ablatio.training.run_folder import read_run, run_id

    fresh.ablatio("train", *SHORT, f"out={tmp_path}", "name=with")
    mine = Venv(tmp_path / "without")
    mine.ablatio("train", *SHORT, f"out={tmp_path}", "name=without")
    run, other = tmp_path / "with", tmp_path / "without"
    assert losses(run) == losses(other) and weights_of(run).keys() == weights_of(other).keys()
    assert "residual_gate" not in json.loads((run / "config.json").read_text())
    assert run_id(read_run(run)) == run_id(read_run(other))
    _, _, none = runs_of(study)["none"]
    assert losses(none) == losses(run)


def test_run_with_the_new_kind_is_evaluated_and_exported(fresh, study, tmp_path):
    _, summary, run = runs_of(study)["scalar"]
    (row,) = json.loads(fresh.ablatio("evaluate", str(run), "--tokens", "256", "--json"))["scores"]
    assert row["loss"] == pytest.approx(summary["val/loss"], rel=1e-5)
    assert "as ablatio" in fresh.ablatio("export", str(run), "--to", str(tmp_path / "exported"))
