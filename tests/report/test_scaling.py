"""Scaling laws: known constants are recovered, intervals cover them, unidentifiable fits are rejected."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import Fake, change_result, write_study
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit, least_squares, minimize_scalar

from ablatio.cli.main import main
from ablatio.report.statistics.scaling_law import (
    SPAN,
    Chinchilla,
    Joint,
    LearningCurve,
    LossToTask,
    Power,
    Repeated,
    Routed,
    best_use,
    budgets,
    dense_equivalent,
    effective,
    envelope,
    fit_law,
    fit_task,
    groups,
    power_of_budget,
)
from ablatio.report.statistics.scaling_law.fitting import NumericForm

CHINCHILLA = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}  # arXiv:2203.15556, equation 10


def loss(law: Mapping[str, float], n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    return np.asarray(law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * d ** -law["beta"])


def grid(sizes: int = 8, lengths: int = 8) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.geomspace(4e7, 1.6e10, sizes), np.geomspace(1e9, 5e11, lengths))
    return n.ravel(), d.ravel()


def test_fit_recovers_chinchilla_constants_quickly() -> None:
    n, d = grid()
    begun = time.perf_counter()
    found = fit_law("chinchilla", {"N": n, "D": d}, loss(CHINCHILLA, n, d), draws=0)
    assert time.perf_counter() - begun < 5
    for name, value in CHINCHILLA.items():
        assert found.coefficients[name] == pytest.approx(value, rel=1e-3)
    assert max(map(abs, found.residuals)) < 1e-9


def kaplan_joint(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """arXiv:2001.08361, equation 1.5, with the constants of its table 2."""
    return ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103


def muennighoff(n: np.ndarray, d: np.ndarray, u: np.ndarray) -> np.ndarray:
    """arXiv:2305.16264 with the constants of its appendix, written as the authors' code does."""
    a, b, e, alpha, beta = np.exp(6.255414), np.exp(7.3049974), np.exp(0.6254804), 0.3526596, 0.3526596
    rd_star, rn_star = 15.387756, 5.309743
    g = ((alpha * a) / (beta * b)) ** (1 / (alpha + beta))
    unique = np.minimum(u, d)
    cost = (unique * g) ** (1 / (alpha / (alpha + beta))) * 6
    un = np.minimum(g * (cost / 6) ** (beta / (alpha + beta)), n)
    rd, rn = d / unique - 1, np.maximum(n / un - 1, 0)
    n1 = un + un * rn_star * (1 - np.exp(-rn / rn_star))
    d1 = unique + unique * rd_star * (1 - np.exp(-rd / rd_star))
    return np.asarray(e + a / n1**alpha + b / d1**beta)


def clark(n: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """arXiv:2202.01169, equation 1, with the constants of S-BASE."""
    start, most = 1.847, 314.478
    saturated = 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
    x, y = np.log10(n), np.log10(saturated)
    return np.asarray(10 ** (-0.082 * x - 0.108 * y + 0.009 * x * y + 1.104))


N, D = grid()
U = np.tile([1e8, 1e9, 1e10, 1e11], 16)
EXPERTS = np.tile([1, 2, 4, 8, 32, 64, 128, 512], 8)
PAPERS = {
    "kaplan": (
        {"N": N, "D": D}, kaplan_joint(N, D), {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}, Joint,
    ),
    "kaplan N": ({"N": N, "D": D * 0 + 1e9}, (8.8e13 / N) ** 0.076, {"Nc": 8.8e13, "alpha_N": 0.076}, Power),
    "kaplan D": ({"N": N * 0 + 1e9, "D": D}, (5.4e13 / D) ** 0.095, {"Dc": 5.4e13, "alpha_D": 0.095}, Power),
    "compute": (
        {"N": N, "D": D, "C": 6 * N * D}, (2.3e28 / (6 * N * D)) ** 0.05, {"Cc": 2.3e28, "alpha_C": 0.05}, Power,
    ),
    "repeated": (
        {"N": N, "D": D, "U": U}, muennighoff(N, D, U), {"R_D": 15.387756, "R_N": 5.309743, "alpha": 0.3526596},
        Repeated,
    ),
    "routed": (
        {"N": N, "D": D, "experts": EXPERTS}, clark(N, EXPERTS),
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478}, Routed,
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", PAPERS)
def test_fit_recovers_the_constants_of_each_paper(law: str) -> None:
    columns, losses, constants, form = PAPERS[law]
    found = fit_law(law.split()[0], columns, losses, draws=0)
    assert isinstance(found.form, form)
    for name, value in constants.items():
        assert found.coefficients[name] == pytest.approx(value, rel=1e-3)


def test_sigmoid_from_loss_to_accuracy() -> None:
    losses = np.linspace(1.8, 3.5, 12)
    found = fit_task(losses, 0.85 - 0.6 / (1 + np.exp(-5 * (losses - 2.4))), draws=0)
    assert found.coefficients == pytest.approx({"a": -0.6, "b": 0.85, "k": 5.0, "L0": 2.4}, rel=1e-3)
    assert found.loss({"L": 2.4}) == pytest.approx(0.55) and isinstance(found.form, LossToTask)
    with pytest.raises(ValueError, match="five different losses"):
        fit_task([2.0] * 8, [0.5] * 8)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e6, 1e12), st.floats(1.0, 200.0))
def test_repeated_tokens_are_worth_at_most_new_ones(unique: float, passes: float) -> None:
    """arXiv:2305.16264: one epoch is worth itself, and no repetition more than U (1 + R*)."""
    worth = float(effective(unique, unique * passes))
    assert unique * (1 - 1e-9) <= worth <= unique * passes * (1 + 1e-9) and worth <= unique * 16.4
    assert float(effective(unique, unique / 2)) == pytest.approx(unique / 2)
    assert float(effective(unique, unique * (passes + 1))) >= worth * (1 - 1e-12)


def test_dense_equivalent_of_a_routed_model_has_its_loss() -> None:
    law = {"a": -0.082, "b": -0.108, "c": 0.009}
    n = dense_equivalent(law, 1e8, 16)
    x, y = np.log10([1e8, n]), np.log10([16, 1])
    scores = law["a"] * x + law["b"] * y + law["c"] * x * y
    assert n > 1e8 and scores[0] == pytest.approx(scores[1])


def test_single_term_fit_matches_scipy() -> None:
    """Oracle: scipy.optimize.curve_fit on relative residuals; noise within the quadratic range of Huber's loss."""
    n = np.geomspace(1e5, 1e8, 9)
    losses = (2.0 + 60 * n**-0.3) * np.exp(np.random.default_rng(0).normal(0, 1e-4, 9))
    theirs, _ = curve_fit(lambda x, e, a, k: np.log(e + a * x**-k), n, np.log(losses), p0=(2, 50, 0.3))
    for columns, names in (
        ({"N": n, "D": [1e6] * 9}, ("E", "A", "alpha")),
        ({"N": [1e6] * 9, "D": n}, ("E", "B", "beta")),
    ):
        found = fit_law("chinchilla", columns, losses, draws=0).coefficients
        assert tuple(found) == names and tuple(found.values()) == pytest.approx(tuple(theirs), rel=1e-4)


def test_fit_is_robust_to_one_outlier() -> None:
    n, d = grid()
    losses = loss(CHINCHILLA, n, d)
    losses[20] *= 1.3
    law = fit_law("chinchilla", {"N": n, "D": d}, losses, draws=0).coefficients
    assert law["alpha"] == pytest.approx(0.34, rel=0.02) and law["beta"] == pytest.approx(0.28, rel=0.02)


def test_noise_is_that_of_least_squares() -> None:
    """Oracle: scipy's least squares of the log losses.  Huber's own residuals are larger."""
    n, d = grid(4, 4)
    for seed in range(5):
        losses = loss(CHINCHILLA, n, d) * np.exp(np.random.default_rng(seed).normal(0, 0.003, len(n)))
        found = fit_law("chinchilla", {"N": n, "D": d}, losses, draws=0)
        start = [np.log(found.coefficients[k]) if k in "EAB" else found.coefficients[k] for k in CHINCHILLA]
        exact = least_squares(
            lambda w, z=losses: Chinchilla().log_loss(w, {"N": n, "D": d}) - np.log(z), start, x_scale="jac"
        )
        assert found.noise**2 == pytest.approx(2 * exact.cost / (len(n) - 5), rel=0.02)
        assert found.noise**2 < np.sum(np.square(found.residuals)) / (len(n) - 5)


@pytest.mark.parametrize("terms", [("A",), ("B",), ("A", "B")])
def test_slopes_of_chinchilla_are_its_derivatives(terms: tuple[str, ...]) -> None:
    """Against central differences, also where one term is nothing beside the others."""
    n, d = grid(3, 3)
    form, rng = Chinchilla(terms), np.random.default_rng(0)
    w = rng.normal([0.5, 6.0, 0.3, 6.0, 0.3][: 1 + 2 * len(terms)], 0.2, (7, 1 + 2 * len(terms)))
    w[0, 0] = -40.0
    found = form.slopes(w, {"N": n, "D": d})
    assert found.shape == (7, 9, w.shape[1])
    np.testing.assert_allclose(found, NumericForm.slopes(form, w, {"N": n, "D": d}), atol=2e-8)


@pytest.mark.slow
def test_intervals_cover_the_true_loss() -> None:
    """Extrapolation to twice the largest size; benchmarks/validity_scaling.py measures it with more studies."""
    n, d = grid(4, 4)
    place = {"N": 2 * n.max(), "D": 2 * d.max()}
    truth, held, runs = float(loss(CHINCHILLA, place["N"], place["D"])), 0, 0
    for study in range(20):
        noise = np.random.default_rng(study).normal(0, 0.003, len(n) + 1)
        losses = loss(CHINCHILLA, n, d) * np.exp(noise[:-1])
        found = fit_law("chinchilla", {"N": n, "D": d}, losses, draws=150, seed=study)
        low, high = found.loss_interval(place)
        held += low <= truth <= high
        low, high = found.run_interval(place)
        runs += low <= truth * np.exp(noise[-1]) <= high
    assert held >= 16 and runs >= 16  # less than 3 of 1000 fail by chance if the intervals cover 95 %


def test_shift_of_a_seed_widens_the_intervals() -> None:
    """Runs of one seed that share a shift are fewer independent runs than they are runs."""
    n, d = (np.repeat(v, 3) for v in grid(3, 3))
    seeds = np.tile([1, 2, 3], 9)
    rng = np.random.default_rng(1)
    losses = loss(CHINCHILLA, n, d) * np.exp(rng.normal(0, 5e-4, 27) + np.array([-0.01, 0.0, 0.01])[seeds - 1])
    place = {"N": 1e9, "D": 1e10}
    apart = fit_law("chinchilla", {"N": n, "D": d}, losses, seeds=seeds, draws=200)
    pooled = fit_law("chinchilla", {"N": n, "D": d}, losses, draws=200)
    assert apart.noise < 1e-3 and apart.seed_noise == pytest.approx(0.01, rel=0.1) and pooled.seed_noise == 0
    assert np.diff(apart.loss_interval(place)) > 1.7 * np.diff(pooled.loss_interval(place))
    assert np.diff(apart.run_interval(place)) > np.diff(apart.run_interval(place, runs=9))


def test_compute_optimal_size_matches_numeric_search() -> None:
    """Oracle: scipy's scalar minimization along the line of equal cost."""
    flops = 5.76e23
    n, d = best_use(CHINCHILLA, flops)
    least = minimize_scalar(
        lambda x: loss(CHINCHILLA, np.exp(x), flops / 6 / np.exp(x)), bounds=(15, 30), method="bounded"
    )
    assert 6 * n * d == pytest.approx(flops) and np.log(n) == pytest.approx(least.x, abs=1e-3)
    with pytest.raises(ValueError, match="both parameters and tokens"):
        best_use({"E": 1.0, "A": 2.0, "alpha": 0.3}, flops)


def test_isoflop_parabola_minimum() -> None:
    sizes = np.geomspace(3e8, 1.4e9, 5)
    losses = 2.5 + 0.1 * (np.log(sizes) - np.log(6e8)) ** 2
    flops = [1e20, 1.02e20, 1e20, 0.98e20, 1e20, 4e20, 4e20]
    (only,) = budgets([*sizes, 1e9, 2e9], flops, [*losses, 2.4, 2.3])
    assert only.best == pytest.approx(6e8) and only.loss == pytest.approx(2.5) and only.inside and only.runs == 5
    (outside,) = budgets(sizes[2:], [1e20] * 3, losses[2:])
    assert not outside.inside and power_of_budget([only, outside]) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(18, 24), min_size=1, max_size=40), st.floats(1.02, 1.5))
def test_budget_groups_are_never_chained(logs: list[float], span: float) -> None:
    """Each run is in one group, and no group spans more than the stated factor, however dense the costs are."""
    flops = np.concatenate([10 ** np.array(logs), 1e20 * np.geomspace(1, 9, 40)])  # 40 costs, each 6 % above the last
    found = groups(flops, span=span)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(flops)))
    assert all(flops[rows].max() / flops[rows].min() <= span * (1 + 1e-9) for rows in found)


def test_planned_budgets_choose_the_groups() -> None:
    flops = [0.95e18, 1e18, 1.05e18, 1.2e18, 2e18]
    first, second = groups(flops, planned=[1e18, 2e18])
    assert first.tolist() == [0, 1, 2] and second.tolist() == [4]
    assert SPAN > 1.05 / 0.95


def test_envelope_of_learning_curves() -> None:
    """Runs of Chinchilla's law: the best size at each budget grows with the exponent beta / (alpha + beta)."""
    curves = []
    for n in np.geomspace(1e7, 1e10, 25):
        d = np.geomspace(n, 400 * n, 60)
        curves.append(LearningCurve(n, 6 * n * d, loss(CHINCHILLA, n, d)))
    found = envelope(curves, draws=20)
    assert found is not None and found.exponent == pytest.approx(0.28 / 0.62, abs=0.02)
    place = len(found.flops) // 2
    best = min(loss(CHINCHILLA, c.n, found.flops[place] / 6 / c.n) for c in curves)
    assert found.losses[place] == pytest.approx(float(best), rel=2e-3)
    assert envelope(curves[:2]) is None


@pytest.mark.parametrize(
    ("law", "columns", "words"),
    [
        ("chinchilla", {"N": [1e6] * 6, "D": [1e6] * 6}, "there are 6 runs, 1 sizes"),
        ("chinchilla", {"N": [1e6, 2e6, 4e6], "D": [1e6] * 3}, "3 runs"),
        # Sizes that differ only by the parameters of a norm count as one.
        ("chinchilla", {"N": [230208, 230528, 230533] * 3, "D": [30720] * 9}, "9 runs, 1 sizes, 1 numbers"),
        ("chinchilla", {"N": [1e6, 2e6, 4e6, 8e6, 9e6], "D": [2e6, 4e6, 8e6, 16e6, 18e6]}, "grow together"),
        ("chinchilla", {"N": [1e6, 2e6, 4e6, 0], "D": [1e6] * 4}, "above 0"),
        ("compute", {"N": [1e6] * 6, "D": [1e6] * 6, "C": [1e12] * 6}, "three budgets"),
        ("routed", {"N": [1e6] * 6, "D": [1e6] * 6, "experts": [8] * 6}, "1 sizes, 1 numbers of experts"),
        ("repeated", {"N": list(N[:16]), "D": list(np.repeat(D[::8], 2)), "U": [1e13] * 16}, "numbers of epochs"),
    ],
)
def test_fit_rejects_unidentifiable_data(law: str, columns: Mapping[str, list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_law(law, columns, [3.0] * len(columns["N"]))


def test_one_fit_has_no_interval_without_freedom() -> None:
    """Five runs for five coefficients: the law fits, and says nothing of its error."""
    n, d = np.array([1e6, 2e6, 4e6, 1e6, 4e6]), np.array([1e7, 2e7, 1e7, 4e7, 4e7])
    found = fit_law("chinchilla", {"N": n, "D": d}, loss(CHINCHILLA, n, d))
    assert np.isnan(found.loss_interval({"N": 8e6, "D": 8e7})).all()
    assert isinstance(found.form, Chinchilla)


SIZES = {"32": 2e5, "64": 8e5, "128": 3e6, "256": 1.2e7}
STEPS = {"100": 1e6, "400": 4e6, "1600": 1.6e7}
LAW = {"E": 1.5, "A": 300.0, "alpha": 0.4, "B": 200.0, "beta": 0.3}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Study of twelve runs whose losses lie exactly on a scaling law."""
    folder = write_study(
        tmp_path / "law", Fake(axes={"model.d_model": list(SIZES), "train.steps": list(STEPS)}, seeds=[1])
    )
    for job in (folder / "jobs").glob("*.json"):
        arm = json.loads(job.read_text())["arm"]
        n, d = SIZES[arm["model.d_model"]], STEPS[arm["train.steps"]]
        more = {"parameters": n, "tokens": d, "train_flops": 7 * n * d, "val/loss": float(loss(LAW, n, d))}
        change_result(folder / "runs" / job.stem, **more)
    return folder


def test_scaling_command_prints_the_law(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(study), "--budget", "1e15", "--json", "--law", "chinchilla"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["law"]["alpha"][0] == pytest.approx(0.4, rel=1e-3) and output["runs"] == 12
    best = output["predicted"][0]
    assert 7 * best["parameters"] * best["tokens"] == pytest.approx(1e15) and len(best["loss"]) == 3
    assert main(["scaling", str(study), "--at", "2e7,3e7", "--law", "chinchilla"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "L = 1.5 + 300 / N^0.4 + 200 / D^0.3" in out and "predicted from the other runs" in out
    assert "a run of 20 M" in out


def test_plan_of_many_epochs_warns(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text of the study has 2.7 M tokens; epochs are counted for the runs and for the plan."""
    assert main(["scaling", str(study), "--at", "2e10,127197275", "--far"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "warning: that is 47 epochs of 2.71 M tokens" in out and "above 40 epochs repetition adds almost nothing" in out
    )
    assert "this law counts them as new" in out and "the longest run reads its text 5.91 times" in out
    assert main(["scaling", str(study), "--law", "repeated"]) == 2  # three numbers of tokens do not tell it
    assert "takes 5 different numbers of tokens" in capsys.readouterr().err


def test_scaling_page_opens_without_a_network(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "scaling.html"
    assert main(["scaling", str(study), "--law", "chinchilla", "--html", str(page)]) == 0
    text = page.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["law"] == "L = 1.5 + 300 / N^0.4 + 200 / D^0.3" and len(data["points"]) == 12
    assert max(abs(p["residual"]) for p in data["points"]) < 1e-6
    assert data["said"]["zh"] != data["said"]["en"] and len(data["said"]["zh"]) == len(data["said"]["en"])
    line = data["lines"][0]
    assert line["y"] == pytest.approx(loss(LAW, np.array(line["x"]), line["of"]["D"]).tolist(), rel=1e-4)
    assert "https://" not in text and "src=" not in text


def test_scaling_command_rejects_far_extrapolation(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(study), "--at", "1e10,1e7"]) == 2
    assert "833 times beyond" in capsys.readouterr().err
    assert main(["scaling", str(study), "--at", "big"]) == 2
    assert main(["scaling", str(study), "--at", "0,1e7"]) == 2
    capsys.readouterr()
    assert main(["scaling", str(study), "--arm", "train.steps=100"]) == 0  # varies the size only
    assert "/ D^" not in capsys.readouterr().out
    assert main(["scaling", str(study), "--arm", "train.steps=100", "--budget", "1e15"]) == 2
    assert main(["scaling", str(study), "--arm", "norm=none"]) == 2
