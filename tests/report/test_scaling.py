"""Scaling laws: known constants are recovered, intervals cover them, unidentifiable fits are rejected."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import Fake, write_study
from scipy.optimize import curve_fit, minimize_scalar

from ablatio.cli.main import main
from ablatio.report.statistics.scaling_law import NAMES, Law, budgets, fit

CHINCHILLA = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # arXiv:2203.15556, equation 10


def grid(sizes: int = 8, lengths: int = 8) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.geomspace(4e7, 1.6e10, sizes), np.geomspace(1e9, 5e11, lengths))
    return n.ravel(), d.ravel()


def test_fit_recovers_chinchilla_constants_quickly() -> None:
    n, d = grid()
    begun = time.perf_counter()
    found = fit(n, d, CHINCHILLA.loss(n, d), draws=0)
    assert time.perf_counter() - begun < 5
    for name in NAMES:
        assert getattr(found.law, name) == pytest.approx(getattr(CHINCHILLA, name), rel=1e-3)
    assert max(map(abs, found.residuals)) < 1e-9


def test_single_term_fit_matches_scipy() -> None:
    """Oracle: scipy.optimize.curve_fit on relative residuals; noise within the quadratic range of Huber's loss."""
    n = np.geomspace(1e5, 1e8, 9)
    loss = (2.0 + 60 * n**-0.3) * np.exp(np.random.default_rng(0).normal(0, 1e-4, 9))
    for found, place in ((fit(n, [1e6] * 9, loss, draws=0).law, 0), (fit([1e6] * 9, n, loss, draws=0).law, 1)):
        theirs, _ = curve_fit(lambda x, e, a, k: np.log(e + a * x**-k), n, np.log(loss), p0=(2, 50, 0.3))
        ours = (found.E, found.A, found.alpha) if place == 0 else (found.E, found.B, found.beta)
        assert ours == pytest.approx(tuple(theirs), rel=1e-4)
        assert (found.B == found.beta == 0) if place == 0 else (found.A == found.alpha == 0)


def test_fit_is_robust_to_one_outlier() -> None:
    n, d = grid()
    loss = CHINCHILLA.loss(n, d)
    loss[20] *= 1.3
    law = fit(n, d, loss, draws=0).law
    assert law.alpha == pytest.approx(0.34, rel=0.02) and law.beta == pytest.approx(0.28, rel=0.02)


@pytest.mark.slow
def test_prediction_interval_covers_true_loss() -> None:
    """Extrapolation to twice the largest size; the percentile bootstrap over 16 runs undercovers slightly."""
    n, d = grid(4, 4)
    place = 2 * n.max(), 2 * d.max()
    held = 0
    for study in range(30):
        noise = np.random.default_rng(study).normal(0, 0.003, len(n))
        found = fit(n, d, CHINCHILLA.loss(n, d) * np.exp(noise), draws=20, seed=study)
        low, high = found.interval(lambda law: law.loss(*place))
        held += low <= CHINCHILLA.loss(*place) <= high
    assert 0.7 < held / 30 <= 1


def test_compute_optimal_size_matches_numeric_search() -> None:
    """Oracle: scipy's scalar minimization along the line of equal cost."""
    flops = 5.76e23
    n, d = CHINCHILLA.best(flops)
    least = minimize_scalar(
        lambda x: CHINCHILLA.loss(np.exp(x), flops / 6 / np.exp(x)), bounds=(15, 30), method="bounded"
    )
    assert 6 * n * d == pytest.approx(flops) and np.log(n) == pytest.approx(least.x, abs=1e-3)
    with pytest.raises(ValueError, match="both count"):
        Law(1.0, 2.0, 0.3, 0.0, 0.0).best(flops)


def test_isoflop_parabola_minimum() -> None:
    sizes = np.geomspace(3e8, 1.4e9, 5)
    loss = 2.5 + 0.1 * (np.log(sizes) - np.log(6e8)) ** 2
    flops = [1e20, 1.02e20, 1e20, 0.98e20, 1e20, 4e20, 4e20]
    (only,) = budgets([*sizes, 1e9, 2e9], flops, [*loss, 2.4, 2.3])
    assert only.best == pytest.approx(6e8) and only.loss == pytest.approx(2.5) and only.inside and only.runs == 5
    (outside,) = budgets(sizes[2:], [1e20] * 3, loss[2:])
    assert not outside.inside


@pytest.mark.parametrize(
    ("n", "d", "words"),
    [
        ([1e6] * 6, [1e6] * 6, "there are 6 runs, 1 sizes"),
        ([1e6, 2e6, 4e6], [1e6] * 3, "3 runs"),
        # Sizes that differ only by the parameters of a norm count as one.
        ([230208, 230528, 230533] * 3, [30720] * 9, "9 runs, 1 sizes, 1 numbers"),
        ([1e6, 2e6, 4e6, 8e6, 9e6], [2e6, 4e6, 8e6, 16e6, 18e6], "grow together"),
        ([1e6, 2e6, 4e6, 0], [1e6] * 4, "above 0"),
    ],
)
def test_fit_rejects_unidentifiable_data(n: list[float], d: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(n, d, [3.0] * len(n))


SIZES = {"32": 2e5, "64": 8e5, "128": 3e6, "256": 1.2e7}
STEPS = {"100": 1e6, "400": 4e6, "1600": 1.6e7}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Study of twelve runs whose losses lie exactly on a scaling law."""
    folder = write_study(
        tmp_path / "law", Fake(axes={"model.d_model": list(SIZES), "train.steps": list(STEPS)}, seeds=[1])
    )
    law = Law(1.5, 300.0, 0.4, 200.0, 0.3)
    for job in (folder / "jobs").glob("*.json"):
        arm = json.loads(job.read_text())["arm"]
        n, d = SIZES[arm["model.d_model"]], STEPS[arm["train.steps"]]
        path = folder / "runs" / job.stem / "summary.json"
        more = {"parameters": n, "tokens": d, "train_flops": 7 * n * d, "val/loss": law.loss(n, d)}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


def test_scaling_command_prints_the_law(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(study), "--budget", "1e15", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["law"]["alpha"][0] == pytest.approx(0.4, rel=1e-3) and output["runs"] == 12
    best = output["predicted"][0]
    assert 7 * best["parameters"] * best["tokens"] == pytest.approx(1e15) and len(best["loss"]) == 3
    assert main(["scaling", str(study), "--at", "2e7,3e7"]) == 0
    out = capsys.readouterr().out
    assert "L = 1.5 + 300 / N^0.4 + 200 / D^0.3" in out and "predicted from the other runs" in out
    assert "a run 20 M" in out


def test_scaling_command_rejects_far_extrapolation(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(study), "--at", "1e10,1e7"]) == 2
    assert "833 times beyond" in capsys.readouterr().err
    assert main(["scaling", str(study), "--at", "1e10,1e7", "--far"]) == 0
    assert main(["scaling", str(study), "--at", "big"]) == 2
    capsys.readouterr()
    assert main(["scaling", str(study), "--arm", "train.steps=100"]) == 0  # varies the size only
    assert "/ D^" not in capsys.readouterr().out
    assert main(["scaling", str(study), "--arm", "train.steps=100", "--budget", "1e15"]) == 2
    assert main(["scaling", str(study), "--arm", "norm=none"]) == 2
