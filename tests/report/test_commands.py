"""Tests of the commands `ablatio compare` and `ablatio noise`."""

import json
import math
import statistics
from pathlib import Path

import pytest
from helpers.studies import ACTIVATIONS, Fake, write_study

from ablatio.cli.main import main
from ablatio.report.analysis.compare_runs import one_run, side_by_side
from ablatio.report.read.run import terms_of
from ablatio.report.read.table import read_table

SMALL = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, seeds=(1, 2), steps=60)


def folders(tmp_path: Path, fake: Fake = SMALL, name: str = "s") -> list[Path]:
    return [r.folder for r in read_table([write_study(tmp_path / name, fake)]).runs]


def test_compare_lists_differing_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = folders(tmp_path)[0], folders(tmp_path, name="t")[2]
    two = side_by_side(one_run(first), one_run(second))
    assert [(line.what, line.first, line.second) for line in two.settings] == [("norm.name", "rmsnorm", "layernorm")]
    assert not two.obstacles and not two.code
    assert main(["compare", str(first), str(second)]) == 0
    assert "norm.name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"data": "cd" * 32}, "other text: abababababab and cdcdcdcdcdcd"),
        ({"steps": 80}, "other token budget: 122,880 and 163,840"),
        ({"states": {("norm=rmsnorm", None): "diverged"}}, "is diverged: it has no score"),
    ],
)
def test_compare_names_obstacles(tmp_path: Path, change: dict, obstacle: str, capsys: pytest.CaptureFixture[str]):
    first, second = folders(tmp_path)[0], folders(tmp_path, Fake(**{**vars(SMALL), **change}), "t")[0]
    assert main(["compare", str(first), str(second)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not comparable" in out and obstacle in out
    assert main(["compare", str(first), str(second), "--json"]) == 0
    assert any(obstacle in o for o in json.loads(capsys.readouterr().out)["obstacles"])


def test_different_tokenizers_are_not_comparable(tmp_path: Path):
    first, second = folders(tmp_path)[:2]
    path = second / "config.json"
    path.write_text(path.read_text().replace('"bpe"', '"bytes"'))
    assert "other tokenizer: bpe 2048 and bytes 2048" in side_by_side(one_run(first), one_run(second)).obstacles[0]


def test_compare_rejects_a_sweep_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_study(tmp_path / "s", SMALL)
    assert main(["compare", str(folder), str(folder)]) == 2
    assert "holds 4 runs, one was expected" in capsys.readouterr().err


def test_noise_floor_defaults_to_baseline_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_study(tmp_path / "s", ACTIVATIONS)
    assert main(["noise", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [r.scores["val/loss"] for r in read_table([folder]).runs if r.arm["activation"] == "gelu"]
    assert found["arm"] == "activation=gelu" and found["n"] == 5
    assert found["sd"] == pytest.approx(statistics.stdev(values))
    assert found["low"] < found["sd"] < found["high"]
    visible = [found["visible"][str(n)] for n in range(2, 21)]
    assert visible == sorted(visible, reverse=True) and all(math.isfinite(v) for v in visible)
    assert main(["noise", str(folder), "--arm", "relu"]) == 0
    assert "activation=relu" in capsys.readouterr().out


def test_noise_requires_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_study(tmp_path / "s", Fake(**{**vars(SMALL), "seeds": (1,)}))
    assert main(["noise", str(folder)]) == 2
    assert "ablatio train -m seed=1,2,3" in capsys.readouterr().err


def test_compare_and_report_agree_on_the_budget_of_a_run_that_ended_early(tmp_path: Path) -> None:
    """A stabilizer ended one run at half of its steps: its budget is the plan, for both commands."""
    whole, early = folders(tmp_path)[0], folders(tmp_path, name="t")[0]
    path = early / "summary.json"
    summary = json.loads(path.read_text())
    summary |= {"steps": summary["steps"] // 2, "tokens": summary["tokens"] // 2, "stopped": {"by": "early_stop"}}
    (early / "metrics.csv").unlink()
    path.write_text(json.dumps(summary))
    runs = [one_run(folder) for folder in (whole, early)]
    assert all(run.done for run in runs) and runs[0].size["tokens"] != runs[1].size["tokens"]
    assert terms_of(runs[0]) == terms_of(runs[1]) and not side_by_side(*runs).obstacles
