"""Signal and noise of scores: definitions against numpy and scipy, tables in all outputs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import ACTIVATIONS, Fake, write_study
from scipy import stats

from ablatio.cli.main import main
from ablatio.report.analysis.findings import find
from ablatio.report.analysis.score_quality import quality_cells, score_qualities
from ablatio.report.html.render import page_text
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.statistics.signal_noise import checkpoint_noise, rank_stability, score_quality, seed_noise

STEPS = list(range(0, 1100, 100))


def curves(shift: float, sd: float, rng: np.random.Generator) -> list[tuple[list[int], list[float]]]:
    return [(STEPS, (3 - np.linspace(0, 1, 11) + shift + rng.normal(0, sd, 11)).tolist()) for _ in range(3)]


def test_ratio_of_the_paper_on_flat_ends() -> None:
    """arXiv:2508.13144: max |a - b| / mean over sd / mean; without a trend our noise estimates the paper's."""
    rng = np.random.default_rng(0)
    flat = {f"a{i}": [(STEPS, (2 + 0.1 * i + rng.normal(0, 0.01, 11)).tolist()) for _ in range(60)] for i in range(4)}
    finals = {arm: {s: c[1][-1] for s, c in enumerate(of)} for arm, of in flat.items()}
    found = score_quality(finals, flat)
    means = [np.mean(list(by.values())) for by in finals.values()]
    paper = (max(means) - min(means)) / np.mean([np.std(c[1][-5:], ddof=1) for of in flat.values() for c in of])
    assert found.snr_checkpoint == pytest.approx(paper, rel=0.05)
    assert found.signal == pytest.approx(0.3, abs=0.01) and found.seed_noise == pytest.approx(0.01, rel=0.15)


def test_seed_noise_is_the_residual_of_the_two_way_table() -> None:
    """Oracle: numpy's least squares on arms and seeds; a shift that arms share in a seed is no noise."""
    rng = np.random.default_rng(1)
    table = rng.normal(0, 0.01, (4, 5)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 1, (4, 1))
    finals = {f"a{i}": dict(enumerate(row)) for i, row in enumerate(table.tolist())}
    design = np.array([[float(i == a) for a in range(4)] + [float(j == s) for s in range(1, 5)]
                       for i in range(4) for j in range(5)])  # fmt: skip
    left = table.ravel() - design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
    assert seed_noise(finals) == pytest.approx(math.sqrt(left @ left / 12))
    assert seed_noise({"a": {1: 1.0, 2: 3.0}, "b": {3: 5.0}}) == pytest.approx(math.sqrt(2))
    assert math.isnan(seed_noise({"a": {1: 1.0}, "b": {1: 2.0}}))


def test_noise_of_checkpoints_leaves_the_trend_out() -> None:
    assert checkpoint_noise(np.linspace(3, 2, 11).tolist()) == pytest.approx(0, abs=1e-12)
    values = np.random.default_rng(2).normal(0, 1, 5)
    line = stats.linregress(range(5), values)
    left = values - line.intercept - line.slope * np.arange(5)
    assert checkpoint_noise([9.0, *values]) == pytest.approx(math.sqrt(left @ left / 3))
    assert math.isnan(checkpoint_noise([1, 2, 3]))


def test_monotone_and_stable_scores_are_told_from_others() -> None:
    rng = np.random.default_rng(3)
    arms = {f"a{i}": curves(0.1 * i, 1e-3, rng) for i in range(5)}
    finals = {arm: {s: c[1][-1] for s, c in enumerate(of)} for arm, of in arms.items()}
    good = score_quality(finals, arms)
    worse = score_quality(finals, arms, higher=True)
    assert good.monotonicity == pytest.approx(1) and worse.monotonicity == pytest.approx(-1)
    assert good.rank_stability == pytest.approx(1) and good.decisions == 1
    noisy = {f"a{i}": curves(0.0, 0.5, rng) for i in range(5)}
    bad = score_quality(finals, noisy)
    assert bad.rank_stability < 0.8 and bad.monotonicity < 0.9
    crossing = np.array([[1, 1, 1, 1.0], [2, 2, 2, 0.0], [3, 3, 3, 3.0]])
    assert rank_stability(crossing) == pytest.approx(stats.kendalltau([1, 2, 3], [1, 0, 3]).statistic)


def test_command_ranks_scores_and_reports_show_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "a", ACTIVATIONS)
    assert main(["noise", str(folder), "--scores", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == sorted(found, key=lambda name: -found[name]["snr_seed"])
    assert found["val/loss"]["arms"] == 6 and found["val/loss"]["seeds"] == 5
    assert found["val/loss"]["snr_seed"] == pytest.approx(found["val/bpb"]["snr_seed"], rel=1e-6)  # bpb = loss / 2.9
    assert main(["noise", str(folder), "--scores"]) == 0
    assert "Signal: largest difference between two arms" in " ".join(capsys.readouterr().out.split())
    table = read_table([folder])
    cells = quality_cells(score_qualities(table))
    report = find(table)
    assert "## Which score separates the arms" in markdown_text(report)
    data = json.loads(page_text(report).split('id="data">')[1].split("</script>")[0])
    assert [tuple(row) for row in data["signal"]] == cells and data["trends"] == []


def test_scores_need_two_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "a", Fake(axes={"norm": ["rmsnorm"]}))
    assert main(["noise", str(folder), "--scores"]) == 2
    assert "needs two or more arms" in capsys.readouterr().err
    assert score_qualities(read_table([folder])) == {}


def test_sizes_are_no_signal(tmp_path: Path) -> None:
    """Of a study over sizes the largest counts: the difference between sizes is not what a score has to separate."""
    axes = {"norm": ["rmsnorm", "layernorm"], "train.steps": ["100", "10000"]}
    folder = write_study(tmp_path / "a", Fake(axes=axes, effects={"train.steps=100": 2.0, "norm=layernorm": 0.05}))
    for path in (folder / "jobs").glob("*.json"):
        job = json.loads(path.read_text())
        summary = folder / "runs" / path.stem / "summary.json"
        tokens = {"tokens": int(job["arm"]["train.steps"]) * 2048}
        summary.write_text(json.dumps(json.loads(summary.read_text()) | tokens))
    found = score_qualities(read_table([folder]))["val/loss"]
    assert found.arms == 2 and found.signal == pytest.approx(0.05, abs=0.02)
