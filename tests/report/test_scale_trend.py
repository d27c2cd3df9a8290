"""Verdict across scales: exact tests over seeds, hold-out, limits of extrapolation, and its sentences."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import Fake, change_result, write_study
from scipy import stats

from ablatio.cli.main import main
from ablatio.report.analysis.findings import find
from ablatio.report.analysis.scaling_verdict import arm_trends, extrapolated, predicted_gain, sentences
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.statistics.scale_trend import FAR, predict, trends

SIZES = {"64": 1e6, "128": 4e6, "256": 1.6e7}


def test_slope_is_the_t_test_of_the_slopes_of_single_seeds() -> None:
    """Oracle: scipy's linear regression per seed, then its one-sample t-test."""
    n = np.array([1e6, 3e6, 1e7, 5e7])
    d = np.random.default_rng(0).normal(0.02, 0.01, (5, 4))
    (found,) = trends({"N": n}, d)
    slopes = [stats.linregress(np.log10(n), row).slope for row in d]
    test = stats.ttest_1samp(slopes, 0)
    assert found.slope.mean == pytest.approx(np.mean(slopes)) and found.slope.p == pytest.approx(test.pvalue)
    assert (found.slope.low, found.slope.high) == pytest.approx(tuple(test.confidence_interval()))
    gain = stats.ttest_1samp(d.mean(1), 0)
    assert found.gain.p == pytest.approx(gain.pvalue) and found.seeds == 5 and found.scales == 4


def test_two_scales_are_told_apart() -> None:
    n, tokens = (v.ravel() for v in np.meshgrid([1e6, 1e7, 1e8], [1e7, 1e8, 1e9]))
    rng = np.random.default_rng(1)
    d = 0.1 - 0.02 * np.log10(n) + rng.normal(0, 1e-3, (4, 9)) + rng.normal(0, 0.01, (4, 1))
    over_n, over_d = trends({"N": n, "D": tokens}, d)
    assert over_n.slope.mean == pytest.approx(-0.02, abs=2e-3) and over_n.slope.p < 1e-3
    assert over_d.slope.p > 0.05 and over_d.slope.mean == pytest.approx(0, abs=2e-3)
    at = predict({"N": n, "D": tokens}, d, {"N": 1e8, "D": 1e9})
    assert at.low < 0.1 - 0.02 * 8 + 0.02 and at.mean == pytest.approx(0.1 - 0.16, abs=0.03)


def test_hold_out_predicts_the_largest_size_from_the_others() -> None:
    n, noise = np.array([1e6, 1e7, 1e8]), np.random.default_rng(2).normal(0, 1e-3, (6, 3))
    line = 0.05 - 0.01 * np.log10(n / 1e7)
    (straight,) = trends({"N": n}, line + noise)
    (bent,) = trends({"N": n}, line + noise + [0, 0, 0.03])
    assert straight.hold_out is not None and straight.hold_out.passed and straight.reach == FAR
    assert straight.hold_out.predicted == pytest.approx(0.04, abs=5e-3)
    assert bent.hold_out is not None and not bent.hold_out.passed and bent.reach == 1
    wide = np.random.default_rng(6).normal(0, 0.2, (3, 3))
    (vague,) = trends({"N": n}, line + wide)
    assert vague.hold_out is not None and vague.hold_out.passed and vague.vague and vague.reach == 1
    (short,) = trends({"N": n[:2]}, (line + noise)[:, :2])
    assert short.hold_out is None and short.reach == 1
    (narrow,) = trends({"N": [1e6, 2e6, 4e6]}, 0.05 + noise)
    assert narrow.reach in (1, 2)  # half of the measured range, if the hold-out passed


@pytest.mark.parametrize(
    ("ends", "kind"),
    [((0.04, 0.01), "shrinks"), ((0.01, 0.04), "grows"), ((-0.01, -0.04), "grows"), ((0.03, -0.03), "reverses"),
     ((0.03, 0.03), "holds"), ((0.0, 0.0), "open")],
)  # fmt: skip
def test_one_word_for_a_trend(ends: tuple[float, float], kind: str) -> None:
    noise = np.random.default_rng(3).normal(0, 5e-4, (6, 3))
    (found,) = trends({"N": [1e6, 4e6, 1.6e7]}, np.linspace(*ends, 3) + noise)
    assert found.verdict() == kind


def test_what_few_seeds_cannot_tell() -> None:
    n = [1e6, 4e6, 1.6e7, 6.4e7, 2.56e8]
    (none,) = trends({"N": n}, np.zeros((0, 5)))
    (one,) = trends({"N": n[:3]}, [[0.1, 0.2, 0.3]])
    (scatter,) = trends({"N": n}, [[0.1, 0.21, 0.3, 0.38, 0.52]])
    (partial,) = trends({"N": n[:3]}, [[0.1, 0.2, math.nan], [0.1, 0.2, 0.3]])
    assert [t.verdict() for t in (none, one, partial)] == ["not testable"] * 3
    assert scatter.verdict() == "grows" and partial.seeds == 1  # one seed: the scatter of five sizes
    (jump,) = trends({"N": n}, [[0.1, 0.21, 0.3, 0.39, 0.9]])
    assert jump.hold_out is not None and not jump.hold_out.passed and jump.reach == 1
    line = stats.linregress(np.log10(n), [0.1, 0.21, 0.3, 0.38, 0.52])
    assert scatter.slope.p == pytest.approx(line.pvalue)


def test_no_interaction_keeps_five_percent() -> None:
    """Unequal spread over the sizes and shifts that a seed shares; benchmarks/validity_scaling.py has more cells."""
    rng, claims = np.random.default_rng(4), 0
    for _ in range(1500):
        d = 0.02 + rng.normal(0, 0.01, (3, 1)) + rng.normal(0, [0.02, 0.008, 0.002], (3, 3))
        (found,) = trends({"N": [1e6, 4e6, 1.6e7]}, d)
        claims += found.verdict() not in ("open", "holds")
    assert 0.033 < claims / 1500 < 0.067  # 5 % +- 3 standard errors


def write(folder: Path, *, gone: bool = False, diverged: bool = False, seeds: tuple[int, ...] = (1, 2, 3, 4)) -> Path:
    """A study of two norms at three sizes; the gain of rmsnorm shrinks from 0.06 to 0.02 nats if `gone`."""
    states = {("norm=rmsnorm", 2): "diverged"} if diverged else {}
    axes = {"norm": ["layernorm", "rmsnorm"], "model.d_model": list(SIZES)}
    write_study(folder, Fake(axes=axes, seeds=seeds, states=states, noise=0.0, seed_sd=0.02))
    rng = np.random.default_rng(5)
    for path in sorted((folder / "jobs").glob("*.json")):
        job = json.loads(path.read_text())
        size = list(SIZES).index(job["arm"]["model.d_model"])
        gain = (0.06, 0.04, 0.02)[size] if gone else 0.05
        run, more = folder / "runs" / path.stem, {"parameters": SIZES[job["arm"]["model.d_model"]]}
        if json.loads((run / "summary.json").read_text())["status"] == "done":
            shift = np.random.default_rng(job["seed"]).normal(0, 0.02)
            better = gain if job["arm"]["norm"] == "rmsnorm" else 0.0
            more["val/loss"] = 3 - 0.3 * size + shift - better + rng.normal(0, 1e-3)
        change_result(run, **more)
    return folder


def test_report_says_that_a_gain_shrinks(tmp_path: Path) -> None:
    found = find(read_table([write(tmp_path / "a", gone=True)]))
    (trend,) = found.trends
    assert trend.kind == "shrinks" and trend.trend.gain.mean == pytest.approx(0.04, abs=2e-3)
    (english,), (chinese,) = found.said_of_scales("en"), found.said_of_scales("zh")
    assert english.startswith("The gain of rmsnorm over layernorm shrinks with parameters: +0.059")
    assert "at 16 M" in english and "Holm p < 0.001, n = 4 seeds" in english
    assert "rmsnorm 相对 layernorm 的优势随参数量增大而缩小" in chinese
    assert trend.trend.slope.mean == pytest.approx(-0.04 / math.log10(16), abs=2e-3)
    text = markdown_text(found)
    assert "## Across scales" in text and "shrinks with parameters" in text


def test_gain_that_holds_and_its_prediction(tmp_path: Path) -> None:
    found = find(read_table([write(tmp_path / "a")])).trends
    assert found[0].kind == "holds" and "holds with parameters" in sentences(found, "nats")[0]
    near = extrapolated(found, 3.2e7, 4e6, "nats")[0]
    assert "the gain of rmsnorm over layernorm at 32 M parameters" in near
    assert predicted_gain(found[0], 3.2e7, 4e6).mean == pytest.approx(0.05, abs=3e-3)
    assert "these runs allow up to 4 times their largest parameters (16 M)" in extrapolated(found, 1e9, 4e6, "nats")[0]
    assert "最多允许外推" in extrapolated(found, 1e9, 4e6, "nats", "zh")[0]


def test_diverged_runs_forbid_a_verdict(tmp_path: Path) -> None:
    (said,) = find(read_table([write(tmp_path / "a", gone=True, diverged=True)])).said_of_scales()
    assert "is not tested: 3 of their runs diverged" in said


def test_one_seed_and_no_sizes(tmp_path: Path) -> None:
    (said,) = find(read_table([write(tmp_path / "a", seeds=(1,))])).said_of_scales()
    assert "cannot be tested: two seeds with all sizes are needed" in said
    plain = find(read_table([write_study(tmp_path / "b", Fake(axes={"norm": ["a", "b"]}))]))
    assert plain.trends == [] and arm_trends([]) == [] and "Across scales" not in markdown_text(plain)


def test_scaling_command_names_each_arm_and_the_trend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write(tmp_path / "a", gone=True))
    assert main(["scaling", folder, "--at", "3e7,4e6", "--baseline", "norm=layernorm model.d_model=64"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "layernorm: L = " in out and "rmsnorm: L = " in out and "the runs also differ in norm" in out
    assert "The gain of rmsnorm over layernorm shrinks with parameters" in out
    assert "the gain of rmsnorm over layernorm at 30 M parameters and 4 M tokens" in out
    assert main(["scaling", folder, "--json"]) == 0
    (trend,) = json.loads(capsys.readouterr().out)["trends"]
    assert trend["kind"] == "shrinks" and trend["hold_out"]["error"]["low"] < 0 < trend["hold_out"]["error"]["high"]
