"""Searches: importance against known variances and another implementation, the best trials, and what is said."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import CHROMIUM, browser
from helpers.studies import Fake, write_study
from rich.console import Console

from ablatio.report.analysis.findings import Findings, find
from ablatio.report.analysis.search import Search, search_of
from ablatio.report.html.render import page_text
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.statistics.importance import importance
from ablatio.report.terminal import arm_table
from ablatio.sweep.study import Axis


def sampled(n: int, seed: int) -> dict[str, list[float] | list[str]]:
    rng = np.random.default_rng(seed)
    return {"a": [*rng.uniform(size=n)], "b": [*rng.uniform(size=n)], "c": [*rng.choice(["x", "y", "z"], size=n)]}


def test_shares_are_those_of_an_additive_function() -> None:
    """Uniform settings with the weights 2 and 1 have first-order Sobol indices 4/5 and 1/5."""
    of = sampled(300, 0)
    found = importance(of, [2 * a + b for a, b in zip(of["a"], of["b"], strict=True)])  # type: ignore[operator]
    assert list(found) == ["a", "b", "c"]
    assert found["a"].share == pytest.approx(0.8, abs=0.06) and found["b"].share == pytest.approx(0.2, abs=0.06)
    assert found["c"].share < 0.03 and found["a"].p < 0.01 and found["b"].p < 0.01


def test_order_of_importance_is_that_of_fanova() -> None:
    """optuna's importance from a random forest, on a function with a bend, a word and a lost trial."""
    optuna = pytest.importorskip("optuna")
    of = sampled(80, 1)
    word = {"x": 0.0, "y": 0.5, "z": 0.0}
    scores = [(a - 0.4) ** 2 * 8 + word[c] + 0.05 * b for a, b, c in zip(*of.values(), strict=True)]  # type: ignore
    space = {n: optuna.distributions.FloatDistribution(0, 1) for n in "ab"}
    space["c"] = optuna.distributions.CategoricalDistribution(["x", "y", "z"])
    study = optuna.create_study()
    for i, y in enumerate(scores):
        params = {n: of[n][i] for n in "abc"}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=y))
    theirs = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    assert list(importance(of, scores)) == list(theirs)
    assert importance(of, [math.nan, *scores[1:]])["a"].share > 0.5


def test_settings_without_influence_are_beyond_chance_in_one_study_of_twenty() -> None:
    """Any of three settings below 0.05, in 100 searches of 12 trials: 12 or fewer, expected 5."""
    rng = np.random.default_rng(3)
    named = sum(
        any(one.p <= 0.05 for one in importance(sampled(12, seed), [*rng.normal(size=12)]).values())
        for seed in range(100)
    )
    assert named <= 12


def test_importance_does_not_depend_on_scale_or_direction() -> None:
    of = sampled(30, 5)
    scores = [3 * a + (c == "y") for a, c in zip(of["a"], of["c"], strict=True)]  # type: ignore[operator]
    found = importance(of, scores)
    assert importance(of, [math.exp(y) for y in scores]) == found
    assert importance(of, [-y for y in scores], better="high") == found
    assert importance(of, scores[:7]) == {} == importance(of, [1.0] * 30)


RATES = [f"{10 ** (-4 + 0.3 * i):.6g}" for i in range(12)]
NORMS = ["rmsnorm", "layernorm"]
RANDOM = Fake(
    axes={"optimizer.lr": ["tag(log,interval(1e-4,1e-1))"], "norm": NORMS},
    arms=[{"optimizer.lr": rate, "norm": NORMS[i % 2]} for i, rate in enumerate(RATES)],
    states={(f"optimizer.lr={RATES[-1]}", None): "diverged"},
    design="random",
    seeds=(1, 2),
    noise=0.001,
)


def found_in(folder: Path, fake: Fake) -> tuple[Findings, Search]:
    found = find(read_table([write_study(folder, fake)]))
    search = search_of(found)
    assert search is not None
    return found, search


def test_random_search_ends_with_its_best_trials(tmp_path: Path) -> None:
    found, search = found_in(tmp_path / "s", RANDOM)
    assert found.factors is None, "no value of an interval occurs twice"
    scores = [t.score for t in search.trials if t.score is not None]
    assert scores == sorted(scores) and len(scores) == 11 and search.trials[-1].score is None
    assert [(k.name, k.scale) for k in search.knobs] == [("lr", "log"), ("norm", "words")]
    assert search.said()[0].startswith(f"Best of 12 trials: {search.trials[0].text(search.knobs)}, val/loss ")
    assert any("diverged or failed" in s for s in search.said()) and "lr" in search.said()[-1]
    assert search.importance["optimizer.lr"].share > 0.5 > search.importance["norm"].share
    console = Console(width=80, record=True, force_terminal=False)
    arm_table.show(console, found)
    shown = console.export_text()
    assert shown.index("Best trials of 12") > shown.index("val/loss") and max(map(len, shown.splitlines())) <= 80
    assert "## Search" in markdown_text(found)
    assert [s.isascii() for s in search.said("zh")] == [False] * len(search.said("zh"))


def test_trials_and_final_runs_of_a_search_are_told_apart(tmp_path: Path) -> None:
    fake = dataclasses.replace(RANDOM, states={}, seeds=(1, 2, 3))
    table = read_table([write_study(tmp_path / "s", fake)])
    kept = {RATES[4], RATES[5]}  # seed 3 is that of the trials; two arms run with the other seeds
    runs = [dataclasses.replace(r, role="trial") if r.seed == 3 else r for r in table.runs]
    table.runs = [r for r in runs if r.role == "trial" or r.arm["optimizer.lr"] in kept]
    table.study = dataclasses.replace(table.study, design={"name": "tpe"}, trial_seed=3)
    search = search_of(find(table))
    assert search is not None and len(search.trials) == 12 and search.seed == 3 and not search.sampled
    assert {t.arm["optimizer.lr"] for t in search.trials if t.final is not None} == kept
    assert all(t.runs == 2 for t in search.trials if t.final is not None)
    assert any("Trials have seed 3" in s for s in search.said()) and "(p" not in search.said()[-1]


def test_search_with_one_seed_names_no_pair_that_cannot_be_tested(tmp_path: Path) -> None:
    """Twelve trials have 66 pairs; a grid, in which each pair was asked for, keeps its sentences."""
    found, search = found_in(tmp_path / "s", dataclasses.replace(RANDOM, states={}, seeds=(1,)))
    assert not [text for text in found.said() if "one shared seed" in text]
    assert found.said()[0].startswith("No test possible") and len(found.said()) < 4
    assert search.said()[0] in markdown_text(found)
    full = Fake(axes={"norm": [*NORMS, "dyt"]}, seeds=(1,))
    assert [text for text in find(read_table([write_study(tmp_path / "f", full)])).said() if "one shared seed" in text]


def test_fixed_designs_have_no_trials(tmp_path: Path) -> None:
    full = Fake(axes={"norm": NORMS, "optimizer.lr": ["0.001", "0.003"]})
    assert search_of(find(read_table([write_study(tmp_path / "s", full)]))) is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_draws_each_trial(tmp_path: Path) -> None:
    found, search = found_in(tmp_path / "s", dataclasses.replace(RANDOM, question="<b>Best rate?</b>"))
    found.table.study.axes = [*found.table.study.axes, Axis("train.steps", ("10",))]
    file = tmp_path / "page.html"
    file.write_text(page_text(found), encoding="utf-8")
    with browser() as page:
        page.open(file)
        assert page.errors == []
        n = len(search.trials)
        assert page.value("document.querySelectorAll('#knobs svg').length") == 2
        assert page.value("document.querySelectorAll('#knobs svg .mark').length") == 2 * n
        assert page.value("document.querySelectorAll('#parallel svg .hit-line').length") == n
        assert page.value("document.querySelectorAll('#importance svg rect.dot').length") == 2
        assert page.value("document.querySelectorAll('#search tbody tr').length") == 10
        page.click("#search .more")
        assert page.value("document.querySelectorAll('#search tbody tr').length") == n
        page.resize(390)
        page.settle()
        assert page.value("document.documentElement.scrollWidth") <= 390
